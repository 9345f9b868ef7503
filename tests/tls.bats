#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (C) 2026 The nbdchain authors
#
# TLS, both ways: bases on servers that are verified, with every kind of
# impostor, and "nbdchain serve" for clients with certificates or keys.
#
# libnbd 1.14 by itself trusts an impostor if it has no ca-cert.pem, and over a
# Unix socket (CVE-2024-7383).  What it is not to be asked to do is refused.
# shellcheck disable=SC2030,SC2031      # a test is a subshell
# shellcheck disable=SC2153,SC2154      # common.bash sets these

load common
load examples

# common_setup: the setup of common.bash.
eval "$(declare -f setup | sed '1s/^setup/common_setup/')"

size=1048576

# In $certs, made once: pki is the CA that is trusted, with a server for
# localhost; the others are impostors, each with one thing wrong.
setup_file ()
{
  export certs=$BATS_FILE_TMPDIR
  cd "$certs" || return 1
  "$top_srcdir/scripts/make-certificates" pki localhost 127.0.0.1
  "$top_srcdir/scripts/make-certificates" other-ca localhost 127.0.0.1
  mkdir other-name self-signed expired
  cp -r pki/ca other-name
  "$top_srcdir/scripts/make-certificates" other-name elsewhere.example
  cp pki/server/{ca-cert,server-key}.pem self-signed
  cp pki/server/{ca-cert,server-key}.pem expired
  printf '%s\n' 'cn = "localhost"' 'dns_name = "localhost"' \
    'ip_address = "127.0.0.1"' tls_www_server signing_key encryption_key \
    'activation_date = "2020-01-01 00:00:00"' \
    'expiration_date = "2021-01-01 00:00:00"' >expired.cfg
  sed '/_date/d' expired.cfg >self-signed.cfg
  certtool --generate-self-signed --no-text --template self-signed.cfg \
    --load-privkey self-signed/server-key.pem \
    --outfile self-signed/server-cert.pem
  certtool --generate-certificate --no-text --template expired.cfg \
    --load-privkey expired/server-key.pem \
    --load-ca-certificate pki/ca/ca-cert.pem \
    --load-ca-privkey pki/ca/ca-key.pem \
    --outfile expired/server-cert.pem
  # A client that has nothing but whom to trust.
  mkdir trust
  cp pki/ca/ca-cert.pem trust
  (
    umask 077
    psktool -u alice -p alice.psk
    psktool -u alice -p other.psk
    psktool -u bob -p bob.psk
    cat bob.psk alice.psk >both.psk
  )
}

setup ()
{
  common_setup
  make_base base.raw "$size"
  port=$(free_port)
}

# base_up DIR [ARGUMENT...]: serve base.raw on $port with the certificates of
# DIR; the one before is gone.  Sets $base_pid and $remote.
base_up ()
{
  base_with --tls=require --tls-certificates="$certs/$1" "${@:2}"
  remote="nbds://localhost:$port/"
}

# base_with ARGUMENT...: serve base.raw on $port.
base_with ()
{
  rm -f base.pid
  start base "$NBDKIT" -f -r -t 1 -p "$port" -P base.pid "$@" file base.raw
  base_pid=$pid
  wait_for 60 is_ready_or_gone base.pid "$pid"
  [ -s base.pid ]
}

base_down ()
{
  stop_hard "$base_pid"
}

# base_on_unix ARGUMENT...: the same on base.sock, with keys.
base_on_unix ()
{
  serve_by base "$NBDKIT" -f -r -t 1 --tls=require "$@" -- file base.raw
  remote="nbds+unix:///?socket=$sock"
}

# overlay FILE OPTION...: an overlay on $remote; and below, one that is not
# made, with a message.
overlay ()
{
  "$NBDCHAIN" create -b "$remote" -F raw "$@" >/dev/null
}

no_overlay ()
{
  rm -f no.fvd
  run -1 timeout 60 "$NBDCHAIN" create -b "$remote" -F raw no.fvd "$@"
  [ ! -e no.fvd ]
  [[ $output == "nbdchain: $remote: "* ]]
}

# no_server OPTION...: top.fvd cannot be served over $remote.
no_server ()
{
  run -1 timeout 60 "$NBDCHAIN" serve top.fvd --base "$remote" "$@"
  [[ $output == *"$remote: "* ]]
}

# --- Remotes --------------------------------------------------------------

@test "a base with a certificate is read over TLS, byte for byte" {
  base_up pki/server
  overlay top.fvd --remote-tls-certificates "$certs/trust"
  run -0 "$NBDCHAIN" info --json top.fvd
  [ "$(jq -r .backing.reference <<<"$output")" = "$remote" ]
  serve top.fvd --allow "$remote" --remote-tls-certificates "$certs/trust"
  assert_same_as base.raw "$uri"
  "$NBDCHAIN" compare -F raw "$remote" base.raw \
    --remote-tls-certificates "$certs/trust"
  oracle 1 --base base.raw --ops 500 "$uri"
  stop "$pid"
  base_down

  # An address is a name, too; and other servers have other libraries.
  rm base.pid
  start base qemu-nbd -r -f raw -t -p "$port" -b 127.0.0.1 --pid-file base.pid \
    --object "tls-creds-x509,id=tls,endpoint=server,dir=$certs/pki/server,verify-peer=no" \
    --tls-creds tls base.raw
  wait_for 60 is_ready_or_gone base.pid "$pid"
  remote="nbds://127.0.0.1:$port/"
  overlay over.fvd --remote-tls-certificates "$certs/trust"
  serve over.fvd --allow "$remote" --remote-tls-certificates "$certs/trust"
  assert_same_as base.raw "$uri"
  stop "$pid"
}

@test "a base with a shared key is read over TLS, by TCP and by a Unix socket" {
  base_with --tls=require --tls-psk="$certs/alice.psk"
  remote="nbds://127.0.0.1:$port/"
  overlay top.fvd --remote-tls-psk "$certs/alice.psk"
  serve top.fvd --allow "$remote" --remote-tls-psk "$certs/alice.psk"
  assert_same_as base.raw "$uri"
  stop "$pid"
  base_down

  base_on_unix --tls-psk="$certs/alice.psk"
  overlay over.fvd --remote-tls-psk "$certs/both.psk" \
    --remote-tls-username alice
  serve_plain over.fvd "allow=$remote" "remote-tls-psk=$certs/both.psk" \
    remote-tls-username=alice
  assert_same_as base.raw "$uri"
  stop_hard "$pid"
}

@test "no impostor gets a connection, whatever its certificate" {
  local dir
  base_up pki/server
  overlay top.fvd --remote-tls-certificates "$certs/trust"
  base_down
  for dir in other-ca/server self-signed other-name/server expired; do
    base_up "$dir"
    no_overlay --remote-tls-certificates "$certs/trust"
    [[ $output == *"certificate is not of this host name, not signed by"* ]]
    no_server --remote-tls-certificates "$certs/trust"
    [[ $output == *"certificate is not of this host name, not signed by"* ]]
    base_down
  done
  # Another name than the right server's own.
  base_up pki/server
  remote="nbds://127.0.0.2:$port/"
  no_overlay --remote-tls-certificates "$certs/trust"
  [[ $output == *"certificate is not of this host name"* ]]
}

@test "nbds: never goes on without TLS, and nbd: says that it is asked for" {
  base_with
  remote="nbds://localhost:$port/"
  no_overlay --remote-tls-certificates "$certs/trust"
  [[ $output == *"the server has no TLS, and nbds: never goes on without"* ]]
  no_overlay --remote-tls-psk "$certs/alice.psk"
  [[ $output == *"the server has no TLS"* ]]
  base_down
  base_up pki/server
  remote="nbd://localhost:$port/"
  no_overlay --remote-tls-certificates "$certs/trust"
  [[ $output == *"the server wants TLS: name it nbds:, and give"* ]]
}

@test "without somebody to trust there is no connection at all" {
  base_up pki/server --verbose
  mkdir empty broken none bad-client
  echo "no certificate" >broken/ca-cert.pem
  : >none/ca-cert.pem
  cp "$certs/trust/ca-cert.pem" bad-client
  cp "$certs/pki/server/server-key.pem" bad-client/client-key.pem
  cp "$certs/pki/client/client-cert.pem" bad-client
  no_overlay
  [[ $output == *"give remote-tls-certificates=DIRECTORY or"* ]]
  no_overlay --remote-tls-certificates missing
  [[ $output == *"missing: No such file"* ]]
  no_overlay --remote-tls-certificates empty
  [[ $output == *"empty/ca-cert.pem: No such file"* ]]
  no_overlay --remote-tls-certificates broken
  [[ $output == *"broken/ca-cert.pem: "* ]]
  no_overlay --remote-tls-certificates none
  [[ $output == *"none/ca-cert.pem: "* ]]
  no_overlay --remote-tls-certificates bad-client
  [[ $output == *"bad-client/client-cert.pem with client-key.pem: "* ]]
  no_overlay --remote-tls-certificates "$certs/alice.psk"
  [[ $output == *"alice.psk: Not a directory"* ]]
  run ! grep accepted base.err
}

@test "certificates over a Unix socket are refused, as libnbd does not verify them" {
  base_on_unix --tls-certificates="$certs/pki/server"
  no_overlay --remote-tls-certificates "$certs/trust"
  [[ $output == *"does not verify certificates over a Unix socket"* ]]
}

@test "credentials are never taken from a URI, nor half of them" {
  local bad
  base_up pki/server
  overlay top.fvd --remote-tls-certificates "$certs/trust"
  for bad in "nbds://localhost:$port/?tls-certificates=$certs/trust" \
             "nbds://localhost:$port/?tls-verify-peer=false" \
             "nbds://alice@localhost:$port/?socket=x" \
             "nbds+unix:///?socket=/x&tls-psk-file=$certs/alice.psk"; do
    remote=$bad
    no_server --remote-tls-certificates "$certs/trust"
    [[ $output == *"remote-tls-"* ]]
  done
  for command in "create -b $remote -F raw no.fvd" "serve top.fvd"; do
    # shellcheck disable=SC2086
    run -2 "$NBDCHAIN" $command --remote-tls-psk x \
      --remote-tls-certificates y
    [[ $output == *"exclude each other"* ]]
    # shellcheck disable=SC2086
    run -2 "$NBDCHAIN" $command --remote-tls-username alice
    [[ $output == *"--remote-tls-psk, which is missing"* ]]
  done
  nbdkit_with_chain
  run -1 "${nbdkit[@]}" -U - "$NBDCHAIN_PLUGIN" top.fvd remote-tls-psk=x \
    remote-tls-certificates=y --run true
  [[ $output == *"exclude each other"* ]]
  run -1 "${nbdkit[@]}" -U - "$NBDCHAIN_PLUGIN" top.fvd \
    remote-tls-username=x --run true
  [[ $output == *"remote-tls-psk=, which is missing"* ]]
}

@test "a key that is wrong, missing or no secret is refused" {
  base_on_unix --tls-psk="$certs/alice.psk"
  no_overlay --remote-tls-psk "$certs/other.psk"
  [[ $output == *"does the server have the same user and key?"* ]]
  no_overlay --remote-tls-psk "$certs/bob.psk"
  [[ $output == *"does the server have the same user and key?"* ]]
  no_overlay --remote-tls-psk "$certs/both.psk"
  [[ $output == *"keys of 2 users"*remote-tls-username* ]]
  no_overlay --remote-tls-psk "$certs/both.psk" --remote-tls-username carol
  [[ $output == *"has no key of the user 'carol'"* ]]
  no_overlay --remote-tls-psk missing
  [[ $output == *"missing: No such file"* ]]
  no_overlay --remote-tls-psk "$certs"
  [[ $output == *"$certs: not a file"* ]]
  (umask 077; : >empty.psk; echo alice:xyz >bad.psk)
  no_overlay --remote-tls-psk empty.psk
  [[ $output == *"empty.psk: has no key"* ]]
  no_overlay --remote-tls-psk bad.psk
  [[ $output == *"the key of 'alice' is not hexadecimal"* ]]
  cp "$certs/alice.psk" open.psk
  chmod 644 open.psk
  no_overlay --remote-tls-psk open.psk
  [[ $output == *"open.psk: every user of this machine can get at it"* ]]
}

@test "a server that wants to know its clients gets our certificate" {
  base_up pki/server --tls-verify-peer
  no_overlay --remote-tls-certificates "$certs/trust"
  overlay top.fvd --remote-tls-certificates "$certs/pki/client"
  serve top.fvd --allow "$remote" --remote-tls-certificates "$certs/pki/client"
  assert_same_as base.raw "$uri"
  stop "$pid"
}

# The reads of these ask for new blocks: read ones are local if need be.
read_at ()
{
  qemu-io -r -f raw -c "read $1 4k" "$uri"
}

@test "a server that restarts is connected to again, an impostor never" {
  base_up pki/server
  overlay top.fvd --remote-tls-certificates "$certs/trust"
  # More than a busy machine may keep the base from its work.
  serve top.fvd --allow "$remote" --remote-tls-certificates "$certs/trust" \
    --retry 4
  local server=$pid
  read_at 0
  base_down
  base_up pki/server
  wait_for 30 read_at 4k
  # Others in its place: without TLS, and with it.
  base_down
  base_with
  run -1 read_at 8k
  [[ $output == *"Input/output error"* ]]
  base_down
  base_up other-ca/server
  run -1 read_at 8k
  [[ $output == *"Input/output error"* ]]
  base_down
  base_up pki/server
  wait_for 30 assert_same_as base.raw "$uri"
  stop "$server"
}

@test "certificates that vanish while a chain is served end in no connection" {
  mkdir mine
  cp "$certs/trust/ca-cert.pem" mine
  base_up pki/server
  overlay top.fvd --remote-tls-certificates mine
  serve top.fvd --allow "$remote" --remote-tls-certificates mine --retry 4
  local server=$pid
  read_at 0
  base_down
  mv mine/ca-cert.pem .
  base_up other-ca/server
  run -1 read_at 8k
  [[ $output == *"Input/output error"* ]]
  base_down
  mv ca-cert.pem mine
  base_up pki/server
  wait_for 30 assert_same_as base.raw "$uri"
  stop "$server"
}

@test "what an image names is followed with the operator's credentials only" {
  base_up pki/server
  overlay top.fvd --remote-tls-certificates "$certs/trust"
  run -1 timeout 60 "$NBDCHAIN" serve top.fvd \
    --remote-tls-certificates "$certs/trust"
  [[ $output == *"--allow"* ]]
  run -1 timeout 60 "$NBDCHAIN" serve top.fvd --allow "nbd://localhost:$port/" \
    --remote-tls-certificates "$certs/trust"
  [[ $output == *"--allow"* ]]
  run -1 timeout 60 "$NBDCHAIN" serve top.fvd --allow "$remote"
  [[ $output == *"$remote: TLS needs to know whom to trust"* ]]
  # To look at an image takes none.
  run -0 "$NBDCHAIN" map --allow "$remote" top.fvd
  run -0 "$NBDCHAIN" info --chain --allow "$remote" top.fvd
}

# --- Serving --------------------------------------------------------------

# serve_tls IMAGE ARGUMENT...: as serve does, but with the URI that is printed
# and without the socket.
serve_tls ()
{
  start serve "$NBDCHAIN" serve "$@"
  wait_for 60 is_ready_or_gone serve.out "$pid"
  uri=$(<serve.out)
  [ -n "$uri" ]
}

# qemu_reads OBJECT SERVER...: QEMU has the disk of base.raw, as a client with
# the credentials OBJECT.
qemu_reads ()
{
  qemu-img compare --object "$1,id=tls,endpoint=client" --image-opts \
    driver=file,filename=base.raw "driver=nbd,tls-creds=tls,$2"
}

@test "with a key, clients that have it are served, and others are not" {
  make_overlay top.fvd base.raw
  cp "$certs/alice.psk" keys.psk
  serve_tls top.fvd -U "$PWD/tls.sock" --tls-psk keys.psk
  [ "$uri" = "nbds+unix://alice@/?socket=$PWD/tls.sock&tls-psk-file=$PWD/keys.psk" ]
  [ "$(nbdinfo --size "$uri")" -eq "$size" ]
  nbdinfo --json "$uri" | jq -e '.TLS == true'
  nbdcopy "$uri" copy.img
  cmp base.raw copy.img
  mkdir keys
  cp keys.psk keys
  qemu_reads tls-creds-psk,username=alice,dir="$PWD/keys" \
    "server.type=unix,server.path=$PWD/tls.sock"
  run ! nbdinfo --size "nbd+unix:///?socket=$PWD/tls.sock"
  [[ $output == *"requires TLS"* ]]
  run ! nbdinfo "nbds+unix://alice@/?socket=$PWD/tls.sock&tls-psk-file=$certs/other.psk"
  run ! nbdinfo "nbds+unix://bob@/?socket=$PWD/tls.sock&tls-psk-file=$certs/bob.psk"
  # A chain of ours is such a client, too.
  remote="nbds+unix:///?socket=$PWD/tls.sock"
  overlay over.fvd --remote-tls-psk keys.psk
  # Also after a crash.
  kill -KILL "$(pgrep -P "$pid")"
  wait_for 30 nbdcopy "$uri" copy.img
  cmp base.raw copy.img
  stop "$pid"
}

# recipe NAME: run that example of the manual, on our port, up to its last line,
# which serves.
recipe ()
{
  local line words
  make_overlay top.fvd base.raw
  while IFS= read -r line <&7; do
    read -ra words <<<"$line"
    if [[ $line == "nbdchain serve "* ]]; then
      serve_tls "${words[@]:2}"
    else
      "${words[@]}"
    fi
  done 7< <(example "$top_srcdir/tools/nbdchain.pod" "$1" |
              sed "s|-p 10809|-p $port|; s|^scripts/|$top_srcdir/scripts/|")
  [[ $uri == nbds://* ]]
  nbdcopy "$uri" copy.img
  cmp base.raw copy.img
  run ! nbdcopy "nbd://127.0.0.1:$port/" no.img
  stop "$pid"
}

@test "the manual's two commands serve with a shared key" {
  recipe "a shared key"
}

@test "the manual's two commands serve with certificates" {
  recipe "certificates"
}

@test "with a certificate, clients know the server, and it knows them if asked" {
  make_overlay top.fvd base.raw
  serve_tls top.fvd -p 0 --tls-certificates "$certs/pki/server"
  [[ $uri =~ ^nbds://127.0.0.1:([0-9]+)/\?tls-certificates=$certs/pki/server$ ]]
  port=${BASH_REMATCH[1]}
  nbdcopy "$uri" copy.img
  cmp base.raw copy.img
  qemu_reads "tls-creds-x509,dir=$certs/trust" \
    "server.type=inet,server.host=localhost,server.port=$port"
  run ! nbdinfo "nbds://localhost:$port/?tls-certificates=$certs/other-ca/server"
  [[ $output == *"certificate verification"* ]]
  run ! nbdinfo --size "nbd://localhost:$port/"
  [[ $output == *"requires TLS"* ]]
  stop "$pid"

  serve_tls top.fvd -p 0 --tls-certificates "$certs/pki/server" --tls-verify-peer
  port=${uri#nbds://127.0.0.1:}
  port=${port%%/*}
  nbdinfo "nbds://localhost:$port/?tls-certificates=$certs/pki/client"
  run ! nbdcopy "nbds://localhost:$port/?tls-certificates=$certs/trust" no.img
  run ! nbdcopy "nbds://localhost:$port/?tls-certificates=$certs/other-ca/client" no.img
  stop "$pid"
}

@test "with --tls=on a client may have TLS or not" {
  make_overlay top.fvd base.raw
  serve_tls top.fvd -U "$PWD/tls.sock" --tls=on --tls-psk "$certs/both.psk"
  # Of two users neither is named.
  [ "$uri" = "nbds+unix:///?socket=$PWD/tls.sock&tls-psk-file=$certs/both.psk" ]
  for uri in "nbd+unix:///?socket=$PWD/tls.sock" \
             "nbds+unix://bob@/?socket=$PWD/tls.sock&tls-psk-file=$certs/bob.psk"; do
    nbdcopy "$uri" copy.img
    cmp base.raw copy.img
  done
  stop "$pid"
}

@test "a certificate for a Unix socket gets a warning" {
  make_overlay top.fvd base.raw
  serve_tls top.fvd -U "$PWD/tls.sock" --tls-certificates "$certs/pki/server"
  [ "$uri" = "nbds+unix:///?socket=$PWD/tls.sock&tls-certificates=$certs/pki/server" ]
  grep -q "warning: .*cannot verify a certificate over a Unix socket" serve.err
  stop "$pid"
}

# wrong_tls STATUS TEXT OPTION...: serve ends at once, and says so.
wrong_tls ()
{
  run "-$1" timeout 60 "$NBDCHAIN" serve top.fvd -p 0 "${@:3}"
  [[ $output == *"$2"* ]]
}

@test "what cannot be served with TLS is refused at once, with the reason" {
  make_overlay top.fvd base.raw
  wrong_tls 2 "exclude each other" --tls-psk x --tls-certificates y
  wrong_tls 2 "needs --tls-psk or --tls-certificates" --tls require
  wrong_tls 2 "--tls=off contradicts --tls-psk" --tls off --tls-psk x
  wrong_tls 2 "give require, on or off" --tls yes
  wrong_tls 2 "--tls-certificates, which is missing" --tls-verify-peer \
    --tls-psk x
  wrong_tls 1 "--tls-psk: missing: No such file" --tls-psk missing
  wrong_tls 1 "--tls-certificates: missing: No such" --tls-certificates missing
  wrong_tls 1 "server-cert.pem: No such file" --tls-certificates "$certs/trust"
  mkdir mixed
  cp "$certs"/pki/server/{ca-cert,server-cert}.pem mixed
  wrong_tls 1 "mixed/server-key.pem: No such file" --tls-certificates mixed
  cp "$certs/other-ca/server/server-key.pem" mixed
  wrong_tls 1 "mixed/server-cert.pem with server-key.pem: " \
    --tls-certificates mixed
  cp "$certs/pki/server/server-key.pem" mixed
  chmod 604 mixed/server-key.pem
  wrong_tls 1 "every user of this machine can get at it" \
    --tls-certificates mixed
  cp "$certs/alice.psk" open.psk
  chmod 644 open.psk
  wrong_tls 1 "every user of this machine can get at it" --tls-psk open.psk
  : >empty.psk
  chmod 600 empty.psk
  wrong_tls 1 "has no key" --tls-psk empty.psk
}

# certificate NAME KEY FROM TO: one of the CA for localhost, of KEY, in the file
# NAME.
certificate ()
{
  printf '%s\n' 'cn = "localhost"' 'dns_name = "localhost"' tls_www_server \
    signing_key encryption_key "activation_date = \"$3\"" \
    "expiration_date = \"$4\"" >template
  certtool --generate-certificate --no-text --template template \
    --load-privkey "$2" --load-ca-certificate "$certs/pki/ca/ca-cert.pem" \
    --load-ca-privkey "$certs/pki/ca/ca-key.pem" --outfile "$1"
}

@test "a certificate that is out of date, or not yet valid, gets a warning" {
  make_overlay top.fvd base.raw
  serve_tls top.fvd -p 0 --tls-certificates "$certs/expired"
  grep -q "warning: $certs/expired/server-cert.pem: expired on 2021-01-01" \
    serve.err
  stop "$pid"

  mkdir future
  cp "$certs/expired/"{ca-cert,server-key}.pem future
  certificate future/server-cert.pem future/server-key.pem \
    "2120-01-01 00:00:00" "2121-01-01 00:00:00"
  serve_tls top.fvd -p 0 --tls-certificates future
  grep -q "warning: .*future/server-cert.pem: is valid from 2120-01-01" \
    serve.err
  stop "$pid"

  mkdir old-ca
  cp "$certs/pki/server/"server-*.pem old-ca
  printf '%s\n' 'cn = "old"' ca cert_signing_key \
    'activation_date = "2019-01-01 00:00:00"' \
    'expiration_date = "2020-01-01 00:00:00"' >template
  certtool --generate-self-signed --no-text --template template \
    --load-privkey "$certs/pki/ca/ca-key.pem" --outfile old-ca/ca-cert.pem
  serve_tls top.fvd -p 0 --tls-certificates old-ca
  grep -q "warning: .*old-ca/ca-cert.pem: expired on 2020-01-01" serve.err
  stop "$pid"

  serve_tls top.fvd -p 0 --tls-certificates "$certs/pki/server"
  run ! grep -q warning serve.err
  stop "$pid"
}

@test "what the server reads has neither the key of the CA nor a client's" {
  [ "$(cd "$certs/pki" && echo *)" = "ca client server" ]
  [ "$(cd "$certs/pki/server" && echo *)" = \
    "ca-cert.pem server-cert.pem server-key.pem" ]
  [ "$(cd "$certs/pki/client" && echo *)" = \
    "ca-cert.pem client-cert.pem client-key.pem" ]
  [ "$(stat -c %a "$certs/pki/ca" "$certs/pki/ca/ca-key.pem" | tr '\n' ' ')" = \
    "700 600 " ]
  # One CA for a second server.
  mkdir second
  cp -r "$certs/pki/ca" second
  "$top_srcdir/scripts/make-certificates" second localhost
  cmp second/ca/ca-key.pem "$certs/pki/ca/ca-key.pem"
  cmp second/server/ca-cert.pem "$certs/pki/ca/ca-cert.pem"
  run -1 "$top_srcdir/scripts/make-certificates" second localhost
  [[ $output == *"is there already"* ]]
}
