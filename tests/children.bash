# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
#
# Whether a process is still the one that was started.  The number of one that
# has ended, and was waited for, is soon another's: of a server of the test
# that runs next to this one, for example, and whoever killed it by its number
# would end that.
# shellcheck shell=bash

# is_child PID: a child of this shell that has not been waited for.
is_child ()
{
  local key value
  while read -r key value; do
    if [ "$key" = PPid: ]; then
      [ "$value" = "$BASHPID" ] || [ "$value" = "$$" ]
      return
    fi
  done 2>/dev/null <"/proc/$1/status"
  return 1
}
