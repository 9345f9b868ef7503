# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
#
# Macros of configure that collect everything that is missing, so that one
# run of configure names it all instead of stopping at the first.

# NC_MISSING(WHAT, DEBIAN-PACKAGE)
# Note that WHAT is missing and which package of Debian has it.
AC_DEFUN([NC_MISSING], [
  nc_missing="$nc_missing
    $1 (Debian package: $2)"
  AS_CASE([" $nc_missing_packages "], [*" $2 "*], [],
          [nc_missing_packages="$nc_missing_packages $2"])
])

# NC_REQUIRE_MODULE(VARIABLE, MODULE, MINIMUM, DEBIAN-PACKAGE, PURPOSE)
# Set VARIABLE_CFLAGS and VARIABLE_LIBS from pkg-config's MODULE.
AC_DEFUN([NC_REQUIRE_MODULE], [
  PKG_CHECK_MODULES([$1], [$2 >= $3], [:], [
    nc_found=`$PKG_CONFIG --modversion $2 2>/dev/null`
    AS_IF([test -n "$nc_found"],
          [NC_MISSING([$2 >= $3, $5: version $nc_found is too old], [$4])],
          [NC_MISSING([$2 >= $3, $5], [$4])])
  ])
])

# NC_REQUIRE_PROG(VARIABLE, PROGRAM, DEBIAN-PACKAGE, PURPOSE)
AC_DEFUN([NC_REQUIRE_PROG], [
  AC_PATH_PROG([$1], [$2], [no], [$PATH:/usr/sbin:/sbin])
  AS_IF([test "x$$1" = xno], [NC_MISSING([the program $2, $4], [$3])])
])

# NC_REPORT_MISSING
# Stop if anything was missing, naming all of it.
AC_DEFUN([NC_REPORT_MISSING], [
  AS_IF([test -n "$nc_missing"], [
    AC_MSG_ERROR([some of what nbdchain needs is missing:
$nc_missing

  On Debian, install it with:

    apt-get install$nc_missing_packages

  or install all that the build and the tests use with scripts/setup.])
  ])
])

# NC_EXPAND_DIR(VARIABLE, DIRECTORY)
# Set VARIABLE to DIRECTORY with ${prefix} and the like expanded.
AC_DEFUN([NC_EXPAND_DIR], [
  nc_prefix=$prefix
  nc_exec_prefix=$exec_prefix
  AS_IF([test "x$prefix" = xNONE], [prefix=$ac_default_prefix])
  AS_IF([test "x$exec_prefix" = xNONE], [exec_prefix=$prefix])
  $1=$2
  while :; do
    AS_CASE([$$1], [*\@S|@*], [eval "$1=\"$$1\""], [break])
  done
  prefix=$nc_prefix
  exec_prefix=$nc_exec_prefix
])

# NC_NBDKIT_VERSIONS
# Set nc_cv_nbdkit_headers and nc_cv_nbdkit_binary to the versions of nbdkit's
# headers, as the compiler finds them, and of the program $NBDKIT.
AC_DEFUN([NC_NBDKIT_VERSIONS], [
  AC_REQUIRE([AC_PROG_CPP])
  AC_CACHE_CHECK([the version of nbdkit's headers], [nc_cv_nbdkit_headers], [
    AC_LANG_CONFTEST([AC_LANG_SOURCE([[
#include <stdint.h>
#include <nbdkit-plugin.h>
nc_version = NBDKIT_VERSION_STRING
    ]])])
    nc_cv_nbdkit_headers=`$CPP -P $CPPFLAGS conftest.$ac_ext 2>/dev/null |
      tr '\n' ' ' | $SED -n 's/.*nc_version = *"\(@<:@^"@:>@*\)".*/\1/p'`
  ])
  AC_CACHE_CHECK([the version of nbdkit], [nc_cv_nbdkit_binary], [
    nc_cv_nbdkit_binary=`$NBDKIT --version 2>/dev/null |
      $SED -n '1s/^nbdkit \(@<:@^ @:>@*\).*/\1/p'`
  ])
])

# NC_CHECK_NBDKIT_VERSIONS
# nbdkit loads a filter only if it was built with the headers of that very
# version.
AC_DEFUN([NC_CHECK_NBDKIT_VERSIONS], [
  AS_IF([test "x$nc_cv_nbdkit_headers" != "x$nc_cv_nbdkit_binary"], [
    AC_MSG_ERROR([$NBDKIT is version $nc_cv_nbdkit_binary, but the headers of nbdkit
  that the compiler finds are of version $nc_cv_nbdkit_headers: nbdkit would refuse the
  filters.  Name the nbdkit to build for by PKG_CONFIG_PATH (the directory of
  its nbdkit.pc) and NBDKIT (the program).])
  ])
])
