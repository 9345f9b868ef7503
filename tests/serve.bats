#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
#
# "nbdchain serve": the socket, the supervision of nbdkit, and its end.
#
# How serve treats an nbdkit that misbehaves is tested with a script in
# nbdkit's place; what is left then works with the real one.

# A test is a subshell, and so is all that it sets.
# shellcheck disable=SC2030,SC2031
bats_require_minimum_version 1.5.0

load children

setup() {
  cd "$BATS_TEST_TMPDIR" || return 1
  # nbdsh needs the python3 that it was installed for.
  PATH=/usr/bin:$PATH
  dir=$PWD
  sock=$dir/sock
  serve_pid=
  others=()
}

teardown() {
  local pid
  for pid in "${others[@]}" $serve_pid; do
    ! is_child "$pid" || kill -KILL "$pid" 2>/dev/null || :
  done
  # Servers end by themselves once serve is gone; some of the script do not.
  if [ -e "$dir/pids" ]; then
    while read -r pid; do
      if grep -qs "$dir/nbdkit" "/proc/$pid/cmdline"; then
        kill -KILL "$pid" 2>/dev/null || :
      fi
    done < "$dir/pids"
  fi
  sed 's/^/# serve: /' "$dir/err" 2>/dev/null || :
}

# until_true COMMAND...: poll it for a minute
until_true() {
  local i
  for ((i = 0; i < 1200; i++)); do
    if "$@"; then return 0; fi
    sleep 0.05
  done
  echo "not within a minute: $*"
  return 1
}

# start ARGUMENT...: serve in the background, output in "out" and "err"
start() {
  : > out
  "$NBDCHAIN" serve "$@" > out 2> err < /dev/null 3>&- &
  serve_pid=$!
}

is_printed() { [ -s out ]; }
has_said() { grep -q -- "$1" err; }

# start_ready ARGUMENT...: and wait for the URI
start_ready() {
  start "$@"
  until_true is_printed
  uri=$(cat out)
}

# finish CODE [SIGNAL]: serve ends with that exit code
finish() {
  local code=0
  if [ -n "${2-}" ]; then kill "-$2" "$serve_pid"; fi
  until_true is_gone "$serve_pid"
  wait "$serve_pid" || code=$?
  serve_pid=
  [ "$code" -eq "$1" ] || { echo "exit code $code, not $1"; return 1; }
}

nbdkit_pid() { pgrep -P "$serve_pid" | head -n 1; }
# is_new_nbdkit OLD: another one runs
is_new_nbdkit() {
  local new
  new=$(nbdkit_pid)
  [ -n "$new" ] && [ "$new" != "$1" ]
}

# --- with a script in nbdkit's place -------------------------------------

# fake LINE...: the Nth nbdkit behaves as the Nth line says, later ones well
fake() {
  printf '%s\n' "$@" > "$dir/plan"
  cat > "$dir/nbdkit" <<'EOF'
#!/usr/bin/env python3
import os, signal, socket, sys, time

top = os.path.dirname(os.path.abspath(sys.argv[0]))
with open(top + "/pids", "a") as f:
    f.write("%d\n" % os.getpid())
with open(top + "/args", "w") as f:
    f.write("".join(a + "\n" for a in sys.argv[1:]))
with open(top + "/pids") as f:
    n = len(f.readlines())
with open(top + "/plan") as f:
    plan = f.read().split("\n")
do = (plan[n - 1] if n <= len(plan) else "").split(" ", 1)

def die():
    os.kill(os.getpid(), signal.SIGKILL)

assert os.environ["LISTEN_PID"] == str(os.getpid())
assert os.environ["LISTEN_FDS"] == "1"
listener = socket.socket(fileno=3)
keeper = socket.socket(fileno=4)
# Memory outlives us: count there how often we were started.
count = os.pread(5, 8, 0)
os.pwrite(5, b"x" * (len(count) + 1), 0)
with open(top + "/count", "w") as f:
    f.write("%d\n" % (len(count) + 1))

if do[0] == "exit":
    sys.exit(int(do[1]))
if do[0] == "die":
    die()
if do[0] == "fail":
    keeper.send(b"failed " + do[1].encode())
    time.sleep(60)
if do[0] == "never":
    time.sleep(60)
keeper.send(b"ready")
if do[0] == "ready-exit":
    sys.exit(int(do[1]))
while True:
    message = keeper.recv(100)
    with open(top + "/heard", "a") as f:
        f.write("%d %s\n" % (n, message.decode()))
    if message == b"":
        sys.exit(0)
    if do[0] == "die-on-stop":
        die()
    if do[0] == "exit-on-stop":
        sys.exit(0)
    if do[0] == "fail-on-stop":
        keeper.send(b"failed disk on fire")
        time.sleep(60)
    if do[0] == "slow-on-stop":
        time.sleep(float(do[1]))
    if do[0] == "idle":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(9))
    if do[0] == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    keeper.send(b"stopped idle" if do[0] in ("idle", "deaf") else b"stopped")
EOF
  chmod +x "$dir/nbdkit"
  export NBDKIT=$dir/nbdkit
}

starts() { [ "$(wc -l < "$dir/pids")" -eq "$1" ]; }
has_started() { [ "$(wc -l < "$dir/pids")" -ge "$1" ]; }
last_fake() { tail -n 1 "$dir/pids"; }
has_heard() { grep -qx -- "$1" "$dir/heard"; }

@test "the URI is printed when the server is ready, encoded" {
  fake
  mkdir 'a b&c;d=%é'
  start_ready top.fvd -U 'a b&c;d=%é/sock'
  [[ $uri == nbd+unix:///?socket=/*/a%20b%26c%3Bd%3D%25%C3%A9/sock ]]
  [ "$(wc -l < out)" -eq 1 ]
  finish 0 TERM
  [ ! -e 'a b&c;d=%é/sock' ]
}

@test "--json prints one object" {
  fake
  start_ready top.fvd -U sock --json
  [ "$(wc -l < out)" -eq 1 ]
  python3 - "$serve_pid" "$(nbdkit_pid)" "$sock" <<'EOF'
import json, sys
o = json.load(open("out"))
assert o["pid"] == int(sys.argv[1])
assert o["nbdkit_pid"] == int(sys.argv[2])
assert o["socket"] == sys.argv[3]
assert o["uri"] == "nbd+unix:///?socket=" + sys.argv[3], o
EOF
  finish 0 TERM
}

@test "only the user may use the socket, unless --socket-mode says so" {
  fake
  umask 0
  start_ready top.fvd -U sock
  [ "$(stat -c %a sock)" = 600 ]
  finish 0 TERM
  umask 077
  start_ready top.fvd -U sock --socket-mode 660
  [ "$(stat -c %a sock)" = 660 ]
  finish 0 TERM
}

@test "without -U and -p a socket in a new directory is used" {
  fake
  unset XDG_RUNTIME_DIR
  export TMPDIR=$dir
  start_ready top.fvd
  [[ $uri == nbd+unix:///?socket=$dir/nbdchain-*/socket ]]
  path=${uri#*socket=}
  [ -S "$path" ]
  [ "$(stat -c %a "${path%/*}")" = 700 ]
  finish 0 TERM
  [ ! -e "${path%/*}" ]
}

@test "options reach nbdkit" {
  fake
  start_ready top.fvd -U sock -r --allow /a=b --allow nbd://h/ --base x \
    --retry 7 --detect-zeroes unmap --threads 20 \
    --max-connections 7 -- --filter=log logfile=l -v
  diff - args <<EOF
-t20
${NBDCHAIN_PLUGIN:-$(sed -n 2p args)}
./top.fvd
allow=/a=b
allow=nbd://h/
base=x
retry=7
detect-zeroes=unmap
follow=true
resume=true
read-only=true
max-waiting=19
max-connections=7
keeper=4
memory=5
--filter=log
logfile=l
-v
EOF
  finish 0 TERM
}

@test "what the image says of prefetching decides which filters are loaded" {
  fake
  truncate -s 1M base.raw
  "$NBDCHAIN" create -b base.raw -F raw no.fvd
  "$NBDCHAIN" create -b base.raw -F raw --prefetch=on top.fvd
  "$NBDCHAIN" create -b base.raw -F raw --prefetch-profile=on boot.fvd
  "$NBDCHAIN" create --prefetch=on alone.fvd 1M
  # loads FILTERS PARAMETERS ARGUMENT...
  loads() {
    local filters=$1 parameters=$2
    shift 2
    start_ready -U sock "$@"
    finish 0 TERM
    [ "$(sed -nE 's/^--filter=.*nbdkit-(.*)-filter.so$/\1/p' args |
      tr '\n' ' ')" = "$filters" ] &&
      [ "$(grep '^prefetch=' args | tr '\n' ' ')" = "$parameters" ] ||
      { cat args; return 1; }
  }
  loads "" "" no.fvd
  loads "" "" alone.fvd
  loads "stream prefetch " "prefetch=image " top.fvd
  loads "stream prefetch " "prefetch=image prefetch=off " top.fvd -- \
    prefetch=off
  loads "prefetch " "prefetch=image " boot.fvd
  loads "stream prefetch " "prefetch=image " boot.fvd --copy-on-read
  loads "stream prefetch " "" top.fvd --prefetch
  loads "" "" top.fvd --no-prefetch
  loads "stream " "" top.fvd --no-prefetch --copy-on-read
  loads "" "" top.fvd --read-only
  # By hand, too.
  loads "prefetch " "" top.fvd -- --filter=/x/nbdkit-prefetch-filter.so
  loads "" "" top.fvd -- --filter prefetch
  loads "prefetch stream " "prefetch=image " top.fvd -- \
    --filter=/x/nbdkit-stream-filter.so
  # One that took over, elsewhere: if that is allowed.
  mkdir here there
  "$NBDCHAIN" create here/old.fvd 1M
  "$NBDCHAIN" snapshot here/old.fvd there/new.fvd
  "$NBDCHAIN" amend --prefetch=on there/new.fvd
  loads "" "" here/old.fvd
  loads "stream prefetch " "prefetch=image " here/old.fvd --allow "$PWD/there"
  grep -q "there/new.fvd: says --prefetch=on" err
  loads "stream prefetch " "prefetch=image " here/old.fvd -- \
    "allow=$PWD/there"
}

@test "more threads than the kernel's client queues are the default" {
  fake
  start_ready ./a=b -U sock
  [ "$(grep -c '^./a=b$\|^././a=b$' args)" -eq 1 ]
  threads=$(sed -n 's/^-t//p' args)
  [ "$threads" -gt 128 ]
  grep -qx "max-waiting=$((threads - 1))" args
  finish 0 TERM
}

@test "wrong usage names the option, the value and what is allowed" {
  fake
  refuses() {
    local expected=$1
    shift
    run -2 --separate-stderr "$NBDCHAIN" serve "$@"
    # shellcheck disable=SC2154 # run sets it
    [[ $stderr == *"$expected"* ]] || { echo "$stderr"; return 1; }
    [ -z "$output" ]
  }
  refuses IMAGE
  refuses IMAGE -- top.fvd
  refuses "one IMAGE" a b
  refuses "--port" a -p 70000
  refuses "65535" a -p x
  refuses "--threads" a --threads 1
  refuses "off, on or unmap" a --detect-zeroes maybe
  refuses "'9'" a --socket-mode 9
  refuses "0777" a --socket-mode 1777
  refuses "exclude" a -U s -p 1
  refuses "--port" a -i ::1
  refuses "Unix" a -p 0 --socket-mode 600
  refuses "--retry" a --retry -1
  refuses "empty" a -U ''
  refuses "--prefetch and --no-prefetch exclude" a --prefetch --no-prefetch
  refuses "IMAGE is empty" ''
  refuses "--nonsense" a --nonsense
  [ ! -e pids ]
}

@test "options of nbdkit that would take over from serve are refused" {
  fake
  refuses() {
    local expected=$1
    shift
    run -2 --separate-stderr "$NBDCHAIN" serve top.fvd -U sock -- "$@"
    # shellcheck disable=SC2154 # run sets it
    [[ $stderr == *"$expected"* ]] || { echo "$stderr"; return 1; }
  }
  refuses "-U cannot be given: give --unix before" -U other
  refuses "-U" -fvUother
  refuses "--unix" --filter log --unix=other
  refuses "-p cannot be given: give --port before" -p 1
  refuses "--port" a=b --port 1
  refuses "-i cannot be given: give --ipaddr before" -i ::1
  refuses "-t cannot be given: give --threads before" -t 1
  refuses "--threads" --thr=1
  refuses "-s cannot be given" -s
  refuses "--vsock cannot be given" --vsock
  refuses "--run cannot be given" --run 'nbdinfo $uri'
  refuses "--exit-with-parent cannot be given" --exit-with-parent
  refuses "serve nothing" --dump-plugin
  refuses "serve nothing" -V
  refuses "'memory=7'" -v memory=7
  refuses "'keeper=7'" keeper=7
  [ ! -e pids ]
  # What only looks like them, and what is newer than the table, is not.
  start_ready top.fvd -U sock -- -f -P -U -e -t --log=stderr --user -p --new=1
  finish 0 TERM
  [ "$(tail -n 9 args | tr '\n' ' ')" = \
    "-f -P -U -e -t --log=stderr --user -p --new=1 " ]
}

@test "--help tells all and fails nothing" {
  run -0 "$NBDCHAIN" serve --help
  for word in --unix --port --ipaddr --read-only --allow --base --retry \
      --threads --detect-zeroes --json --socket-mode; do
    [[ $output == *"$word"* ]]
  done
}

@test "a socket that is left over is replaced" {
  fake
  python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("sock")'
  [ -S sock ]
  start_ready top.fvd -U sock
  finish 0 TERM
  [ ! -e sock ]
}

@test "a socket in use is refused and left alone" {
  fake
  start_ready top.fvd -U sock
  run -1 "$NBDCHAIN" serve other.fvd -U sock
  [[ $output == *"another server"* ]]
  [ -S sock ]
  starts 1
  finish 0 TERM
}

@test "anything else in the socket's place is refused and left alone" {
  fake
  echo precious > sock
  run -1 "$NBDCHAIN" serve top.fvd -U sock
  [[ $output == *"is no socket"* ]]
  [ "$(cat sock)" = precious ]
  run -1 "$NBDCHAIN" serve top.fvd -U nowhere/sock
  [[ $output == *"No such file"* ]]
  run -1 "$NBDCHAIN" serve top.fvd -U "$(printf '%0200d' 0)"
  [[ $output == *"1 to 107 bytes"* ]]
}

@test "a socket that somebody else put there is not removed at the end" {
  fake
  start_ready top.fvd -U sock
  rm sock
  echo other > sock
  finish 0 TERM
  [ "$(cat sock)" = other ]
}

@test "TCP: this machine only, the port chosen is printed" {
  fake
  start_ready top.fvd -p 0
  [[ $uri =~ ^nbd://127\.0\.0\.1:([0-9]+)/$ ]]
  port=${BASH_REMATCH[1]}
  # The kernel queues the client, whoever answers it.
  python3 -c "import socket; socket.create_connection(('127.0.0.1', $port))"
  run -1 "$NBDCHAIN" serve top.fvd -p "$port"
  [[ $output == *"port $port of address 127.0.0.1"* ]]
  finish 0 TERM
}

@test "TCP: other addresses on request" {
  fake
  start_ready top.fvd -p 0 -i 0.0.0.0
  [[ $uri == nbd://localhost:* ]]
  finish 0 TERM
  if [ -e /proc/net/if_inet6 ] && grep -q ' lo$' /proc/net/if_inet6; then
    start_ready top.fvd -p 0 -i ::1
    [[ $uri == "nbd://[::1]:"* ]]
    finish 0 TERM
  fi
  run -1 "$NBDCHAIN" serve top.fvd -p 0 -i no.such.host.invalid
  [[ $output == *no.such.host.invalid* ]]
}

@test "SIGTERM and SIGINT ask the server to stop" {
  fake
  start_ready top.fvd -U sock
  finish 0 TERM
  has_heard "1 stop"
  start_ready top.fvd -U sock
  finish 0 INT
  has_heard "2 stop"
  is_gone "$(last_fake)"
}

@test "SIGHUP changes nothing" {
  fake
  start_ready top.fvd -U sock
  kill -HUP "$serve_pid"
  finish 0 TERM
  starts 1
}

@test "what could not be made durable is told, and the exit code is 1" {
  fake fail-on-stop
  start_ready top.fvd -U sock
  finish 1 TERM
  has_said "disk on fire"
  is_gone "$(last_fake)"
  [ ! -e sock ]
}

@test "a server without clients is asked to end, and made to if it does not" {
  fake idle deaf
  for i in 1 2; do
    start_ready top.fvd -U sock
    finish 0 TERM
    has_heard "$i stop"
    is_gone "$(last_fake)"
  done
  # A wait that is over is no restart.
  starts 2
}

@test "a slow stop is waited for, also after more SIGTERMs, and told" {
  fake "slow-on-stop 8"
  start_ready top.fvd -U sock
  kill "$serve_pid"
  kill "$serve_pid"
  until_true has_said "waiting for nbdkit to make everything durable"
  kill "$serve_pid"
  kill -INT "$serve_pid"
  finish 0
  starts 1
}

@test "the third SIGINT abandons what is not durable" {
  fake "slow-on-stop 60"
  start_ready top.fvd -U sock
  kill -INT "$serve_pid"
  until_true has_heard "1 stop"
  kill -INT "$serve_pid"
  until_true has_said "a third SIGINT"
  finish 1 INT
  is_gone "$(last_fake)"
}

@test "a server killed is started again with the same memory" {
  fake
  start_ready top.fvd -U sock
  for i in 1 2 3; do
    old=$(nbdkit_pid)
    kill -KILL "$old"
    until_true starts $((i + 1))
    until_true is_new_nbdkit "$old"
    # It has counted itself before it is killed in its turn.
    until_true grep -qx $((i + 1)) count
  done
  has_said SIGKILL
  [ "$(wc -l < out)" -eq 1 ]
  finish 0 TERM
  has_heard "4 stop"
}

@test "a server that cannot be started again is tried until it can" {
  fake ready "exit 1" "exit 1" die ready
  start_ready top.fvd -U sock
  kill -KILL "$(nbdkit_pid)"
  until_true starts 5
  finish 0 TERM
  has_heard "5 stop"
}

@test "a server that dies while it stops is started to be stopped" {
  fake die-on-stop exit-on-stop "exit 1" ready
  start_ready top.fvd -U sock
  finish 0 TERM
  starts 4
  has_heard "4 stop"
}

@test "SIGTERM while a start is put off does not lose anything" {
  fake ready die die die die die
  start_ready top.fvd -U sock
  kill -KILL "$(nbdkit_pid)"
  until_true has_started 5
  finish 0 TERM
  has_heard "7 stop"
}

@test "a server that fails before it was ready ends serve" {
  fake "exit 3"
  start top.fvd -U sock
  finish 3
  [ ! -e sock ]
  fake "" "fail no such image"
  start top.fvd -U sock
  finish 1
  has_said "no such image"
  [ ! -s out ]
}

@test "a server that always dies before it was ready is given up" {
  fake die die die die die die die
  start top.fvd -U sock
  finish 1
  starts 5
  has_said "giving up"
  [ ! -e sock ]
}

@test "SIGTERM before the server is ready ends it at once" {
  fake never
  start top.fvd -U sock
  until_true test -e count
  finish 0 TERM
  is_gone "$(last_fake)"
}

@test "a server that ends by itself has its writes made durable" {
  fake "ready-exit 0"
  start top.fvd -U sock
  finish 0
  has_said "exited with code 0 by itself"
  starts 2
  has_heard "2 stop"
  rm pids heard
  fake "ready-exit 4"
  start top.fvd -U sock
  finish 4
  has_heard "2 stop"
}

@test "one that only reads ends without a word of what is durable" {
  fake "ready-exit 0"
  start --read-only top.fvd -U sock
  finish 0
  has_said 'exited with code 0 by itself: "serve" ends, too'
  starts 1
}

@test "a missing nbdkit is told" {
  export NBDKIT=$dir/nothing
  run -1 "$NBDCHAIN" serve top.fvd -U sock
  [[ $output == *"$dir/nothing"* ]]
}

@test "systemd is told when the server is ready and when it stops" {
  fake
  python3 - <<'EOF' 3>&- &
import socket
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind("notify")
for i in range(2):
    with open("notified", "ab") as f:
        f.write(s.recv(100) + b"\n")
EOF
  others+=($!)
  until_true test -S notify
  export NOTIFY_SOCKET=$dir/notify
  start_ready top.fvd -U sock
  until_true grep -qx READY=1 notified
  finish 0 TERM
  until_true grep -qx STOPPING=1 notified
}

# --- with nbdkit ----------------------------------------------------------

make_image() { "$NBDCHAIN" create top.fvd 64M > /dev/null; }

# attach: a client that writes the first block, without flush, and stays
attach() {
  nbdsh -c "h.connect_uri('$uri')" \
    -c "h.pwrite(b'x' * 4096, 0)" \
    -c "open('attached', 'w').close()" \
    -c "import time; time.sleep(600)" 3>&- > /dev/null 2>&1 &
  others+=($!)
  until_true test -e attached
}

first_byte() {
  nbdsh -u "$uri" -c 'print(h.pread(1, 0).decode(errors="replace"))'
}
reads_x() { [ "$(first_byte 2> /dev/null)" = x ]; }

@test "SIGTERM with an idle client attached: durable and clean, soon" {
  make_image
  start_ready top.fvd -U sock
  attach
  finish 0 TERM
  # It is told what a stop waits for; ten seconds are not that of a busy machine.
  run ! has_said "stopping for [1-9][0-9]"
  run -0 "$NBDCHAIN" check top.fvd
  start_ready top.fvd -U sock
  reads_x
  finish 0 TERM
}

@test "kill -9 of nbdkit: the URI stays good, an unflushed write stays" {
  make_image
  start_ready top.fvd -U sock
  attach
  for _ in 1 2 3; do
    old=$(nbdkit_pid)
    kill -KILL "$old"
    until_true is_new_nbdkit "$old"
    until_true reads_x
  done
  finish 0 TERM
  run -0 "$NBDCHAIN" check top.fvd
}

@test "kill -9 of serve: nbdkit ends by itself, and the image is clean" {
  make_image
  start_ready top.fvd -U sock
  attach
  pid=$(nbdkit_pid)
  kill -KILL "$serve_pid"
  serve_pid=
  until_true is_gone "$pid"
  run -0 "$NBDCHAIN" check top.fvd
  start_ready top.fvd -U sock
  reads_x
  finish 0 TERM
}

@test "a configuration error ends serve with nbdkit's message" {
  start missing.fvd -U sock
  finish 1
  has_said missing.fvd
  [ ! -e sock ]
  make_image
  start top.fvd -U sock -- --filter=nonexistent
  finish 1
  has_said nonexistent
}

@test "filters and their parameters go behind --" {
  make_image
  start_ready top.fvd -U sock -- --filter=log logfile=log.txt
  attach
  finish 0 TERM
  grep -q Write log.txt
}

# has_threads N: nbdkit, or with a sanitizer more of them; has_only_threads N:
# no more, for those of a connection end some time after its client.
threads() { find "/proc/$(nbdkit_pid)/task" -mindepth 1 -maxdepth 1 | wc -l; }
has_threads() { [ "$(threads)" -ge "$1" ]; }
has_only_threads() { [ "$(threads)" -le "$1" ]; }

@test "nbdkit's statistics, log and pid file are to be had behind --" {
  make_image
  start_ready top.fvd -U sock -- --filter=stats "statsfile=$dir/stats" \
    -P "$dir/pid" --log=null
  [ "$(cat pid)" = "$(nbdkit_pid)" ]
  # The thread that listens to serve begins when nbdkit has said that it is
  # ready.
  until_true has_threads 2
  threads=$(threads)
  run ! nbdinfo "${uri/\/\/\//\/\/\/none}"
  nbdinfo "$uri"
  # While a client is connected, nbdkit is not asked to end, but killed.
  until_true has_only_threads "$threads"
  finish 0 TERM
  grep -q read stats
  # What nbdkit said of the export was for its log.
  run ! grep -q nbdkit: err
  start_ready top.fvd -U sock -- -v
  has_said "nbdkit: debug:"
  run ! nbdinfo "${uri/\/\/\//\/\/\/none}"
  has_said "export 'none' does not exist"
  finish 0 TERM
}

@test "real clients over TCP" {
  make_image
  start_ready top.fvd -p 0
  [ "$(nbdinfo --size "$uri")" -eq $((64 << 20)) ]
  finish 0 TERM
}
