# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
#
# A client of the control socket "qmp" in the test's directory.
# shellcheck shell=bash

# top_srcdir: common.bash
# shellcheck disable=SC2154
qmp=$top_srcdir/tests/peers/qmp.py

# ask COMMAND [ARGUMENTS]: print what it returns, or the error.
ask ()
{
  printf '{"execute": "%s", "arguments": %s}\n' "$1" "${2:-"{}"}" |
    "$qmp" script qmp
}

# member EXPRESSION: of the JSON D on stdin.
member ()
{
  /usr/bin/python3 -c 'import json, sys
D = json.loads(sys.stdin.read())
D = D.get("return", D)
print(eval(sys.argv[1]))' "$1"
}
