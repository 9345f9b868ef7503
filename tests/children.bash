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
  local stat='' parent
  # In one read, for a file of /proc may change between two.  The end of the
  # file ends it, which is not an error here.
  { read -r -d '' stat <"/proc/$1/stat"; } 2>/dev/null || [ -n "$stat" ] ||
    return 1
  # "PID (NAME) STATE PARENT ...", and NAME may have anything in it.
  read -r _ parent _ <<<"${stat##*) }"
  # No "return" without a status: in a trap for EXIT it gives what the shell
  # exits with, so that after a failure nothing would be a child.
  [ "$parent" = "$BASHPID" ] || [ "$parent" = "$$" ]
}

# is_gone PID: also if nobody has waited for it, as the first process of a
# container may not.  Its first thread may have ended before others, one that
# syncs a slow disk for example: until these have, its files are open and locked.
is_gone ()
{
  local stat='' fields
  { read -r -d '' stat <"/proc/$1/stat"; } 2>/dev/null || [ -n "$stat" ] ||
    return 0
  # From the state on; the eighteenth is the number of threads.
  read -ra fields <<<"${stat##*) }"
  [[ ${fields[0]} == [ZX] ]] && [ "${fields[17]}" -le 1 ]
}
