# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
#
# Flags and rules that every folder with C code or a man page includes.
# A folder adds to these with +=.

AM_CPPFLAGS = -I$(top_srcdir)/lib
AM_CFLAGS = -std=gnu11 -pthread \
	$(WARN_CFLAGS) $(SANITIZER_CFLAGS) $(COVERAGE_CFLAGS)
AM_LDFLAGS = -Wl,--as-needed -Wl,--enable-new-dtags

EXTRA_DIST =
CLEANFILES =
SUFFIXES = .pod .1

# A folder lists its pages in man1_MANS and their .pod in EXTRA_DIST.
.pod.1:
	$(AM_V_GEN)rm -f $@ $@-t && \
	$(POD2MAN) --utf8 --errors=die --section=1 --name=$(*F) \
	  --center="nbdchain" --release="nbdchain-$(VERSION)" $< $@-t && \
	mv $@-t $@
