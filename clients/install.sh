#!/bin/sh
# Installs a product with its one-time install code. Under the name iptunnel-agent the same file is the
# agent, which checks in afterwards: so the machine needs one file, and both speak to the server alike.
# POSIX sh (dash, bash, busybox), curl or GNU wget, and what every Linux has.
#
# The server that hands this file out fills in three values. A copy that nobody filled in takes --server
# and --product.
SERVER_URL='@public_url@'
PRODUCT='@product@'
CODE_VARIABLE='@variable@'

VERSION='1.0.0'
LAST_LINE='{ main "$@"; exit; }'

usage() {
  cat <<'EOT'
Installs a product with its one-time install code.

  curl -fsSL SERVER/PRODUCT/install.sh | sudo sh -s -- [CODE] [OPTIONS]
  sudo sh install.sh [CODE] [OPTIONS]

The code may also come from the environment (such as SLOWDNS_INSTALL_CODE) or from a file. On a
terminal the installer asks for what is missing and whether to go on.

  --yes              ask nothing (unattended)
  --code-file FILE   read the code from FILE
  --ip ADDRESS       the public address (else: the one that the server sees)
  --hostname NAME    the host name (else: the machine's own)
  --no-start         set everything up, but do not start the agent
  --dry-run          check and say what would be done; change nothing
  --uninstall        stop the agent, undo the setup script, remove the installer's files
  --server URL       the activation server
  --product NAME     the product
  --root DIR         install below DIR (no root needed; nothing is started)
  --timeout SECONDS  how long one request may take (15)
  --tries COUNT      how often a request is sent that gets no usable answer (6)
  --help             this text

Exit status:
  0  installed                         5  limit reached: it says when to come back
  1  something unexpected              6  the setup script failed; the code was given back
  2  wrong usage                       7  interrupted; the code was given back
  3  the server refused the code       8  this machine lacks something
  4  no usable answer; the code is     9  installed, but registration or agent are not
     still good                           finished: run the same command again

Run it again after any failure: it goes on where it stopped.
EOT
}

agent_usage() {
  cat <<'EOT'
Usage: iptunnel-agent [--root DIR] COMMAND

  status      show the last check-in and what the server said
  run         check in if it is time (what the timer calls); run --now: at once
  loop        check in again and again (where there is neither systemd nor cron)
  uninstall   undo the installation of all products and remove the agent
EOT
}

# ---------------------------------------------------------------- words

say() { printf '%s\n' "$*"; }
warn() { printf '%s\n' "$*" >&2; }

# Ends with a status and words. What is held goes back to the server first.
fail() {
  failed=$1
  shift
  trap '' INT TERM HUP
  warn "Error: $*"
  settle
  exit "$failed"
}

# The words for a span of so many seconds.
span() {
  if [ "$1" -lt 120 ]; then say "$1 seconds"
  elif [ "$1" -lt 7200 ]; then say "$((($1 + 59) / 60)) minutes"
  else say "$((($1 + 3599) / 3600)) hours"; fi
}

# The time of day at that second, where `date` can tell.
at_time() { date -d "@$1" '+%Y-%m-%d %H:%M:%S %Z' 2> /dev/null || say "second $1"; }

now() { date +%s; }

can_ask() { [ -z "$YES" ] && (: < /dev/tty) 2> /dev/null; }

# Asks a person. The script itself may be what standard input brings, so the terminal is asked.
question() {
  printf '%s' "$1" > /dev/tty
  REPLY=''
  IFS= read -r REPLY < /dev/tty || fail 2 'the terminal gave no answer.'
}

# Sleeps in steps, so that a signal is heard within a second.
pause() {
  left=$1
  while [ "$left" -gt 0 ]; do
    sleep 1
    left=$((left - 1))
  done
}

random_hex() { od -An -N"$1" -tx1 /dev/urandom | tr -d ' \n'; }

# ---------------------------------------------------------------- requests

# One request: METHOD PATH [TOKEN]. The body of a POST is in $WORK/send. Sets HTTP (000: no answer) and,
# if there was none, WHY and IS_FINAL. Leaves $WORK/head and $WORK/body. Secrets are in files of mode
# 0600, since everybody on the machine can read a command line.
request() {
  HTTP=000 WHY='' IS_FINAL=''
  : > "$WORK/head"
  : > "$WORK/body"
  if [ "$CLIENT" = curl ]; then by_curl "$@"; else by_wget "$@"; fi
  case $HTTP in [1-5][0-9][0-9]) ;; *) HTTP=000 ;; esac
}

by_curl() {
  {
    cat << EOT
url = "$SERVER_URL$2"
proto = "=http,https"
silent
globoff
output = "$WORK/body"
dump-header = "$WORK/head"
write-out = "%{http_code}"
user-agent = "iptunnel-install/$VERSION"
connect-timeout = $TIMEOUT
EOT
    # A large file may take its time as long as it moves.
    if [ -n "$IS_LARGE" ]; then say "speed-time = $TIMEOUT"; say 'speed-limit = 1'
    else say "max-time = $TIMEOUT"; fi
    [ -z "$FAMILY" ] || say "$FAMILY"
    if [ "$1" = POST ]; then
      say 'header = "Content-Type: application/json"'
      say "data-binary = \"@$WORK/send\""
    fi
    [ -z "${3:-}" ] || cat << EOT
header = "Authorization: Bearer $3"
EOT
  } > "$WORK/request"
  HTTP=$(curl -q --config "$WORK/request" < /dev/null 2> /dev/null)
  status=$?
  [ "$status" = 0 ] || HTTP=000
  case $status in
    0) ;;
    5 | 6) WHY=$(unresolved) ;;
    7) WHY='no connection: refused, or no way there' ;;
    18 | 52 | 56) WHY='the answer was cut' ;;
    23) WHY='the answer could not be written: is the disk full?' ;;
    28) WHY="no answer within $TIMEOUT seconds" ;;
    51 | 60) WHY=$(untrusted) IS_FINAL=yes ;;
    35 | 53 | 54 | 58 | 59 | 66 | 77 | 80 | 82 | 83 | 90 | 91) WHY="the encrypted connection failed (TLS, curl status $status)" ;;
    *) WHY="curl ended with status $status" ;;
  esac
}

by_wget() {
  {
    cat << EOT
timeout = $TIMEOUT
tries = 1
max_redirect = 0
content_on_error = on
user_agent = iptunnel-install/$VERSION
EOT
    [ -z "$FAMILY" ] || say 'inet4_only = on'
    if [ "$1" = POST ]; then
      say 'header = Content-Type: application/json'
      say "post_file = $WORK/send"
    fi
    [ -z "${3:-}" ] || cat << EOT
header = Authorization: Bearer $3
EOT
  } > "$WORK/request"
  LC_ALL=C wget --config="$WORK/request" -S -O "$WORK/body" -o "$WORK/log" "$SERVER_URL$2" < /dev/null
  status=$?
  sed -n 's/^  //p' "$WORK/log" > "$WORK/head"
  case $status in
    0 | 8) HTTP=$(sed -n 's/^HTTP\/[0-9.]* *\([0-9]*\).*/\1/p' "$WORK/head" | tail -n 1) ;;
    3) WHY='the answer could not be written: is the disk full?' ;;
    5) WHY=$(untrusted) IS_FINAL=yes ;;
    *)
      if grep -q 'unable to resolve' "$WORK/log"; then WHY=$(unresolved)
      elif grep -q 'timed out' "$WORK/log"; then WHY="no answer within $TIMEOUT seconds"
      elif grep -q 'refused\|unreachable' "$WORK/log"; then WHY='no connection: refused, or no way there'
      else WHY='the answer was cut'; fi
      ;;
  esac
}

unresolved() {
  host=${SERVER_URL#*://}
  say "the name ${host%%[:/]*} cannot be resolved: is there a network, and does DNS work (/etc/resolv.conf)?"
}

untrusted() {
  say "the server's certificate is not trusted (TLS). This machine's clock says $(date -u '+%Y-%m-%d %H:%M UTC'):" \
    'if that is wrong, set it. Else install the package ca-certificates, or tell the operator of the server'
}

# Flattens the JSON on standard input to lines such as `data.ip=1.2.3.4`. Fails if it is not one whole
# JSON object, so a cut answer is noticed. Control characters become blanks: values may be shown.
flatten() {
  LC_ALL=C awk '
    function bad() { exit 1 }
    function peek() { return substr(t, i, 1) }
    function blank() { while (peek() ~ /^[ \t\r\n]$/) i++ }
    function hex4(   n, k, d) {
      n = 0
      for (k = 0; k < 4; k++) {
        d = index("0123456789abcdef", tolower(substr(t, i + k, 1)))
        if (d == 0 || substr(t, i + k, 1) == "") bad()
        n = n * 16 + d - 1
      }
      i += 4
      return n
    }
    function utf8(n) {
      if (n < 32 || n == 127) return " "
      if (n < 128) return sprintf("%c", n)
      if (n < 2048) return sprintf("%c%c", 192 + int(n / 64), 128 + n % 64)
      if (n < 65536) return sprintf("%c%c%c", 224 + int(n / 4096), 128 + int(n / 64) % 64, 128 + n % 64)
      return sprintf("%c%c%c%c", 240 + int(n / 262144), 128 + int(n / 4096) % 64, 128 + int(n / 64) % 64, 128 + n % 64)
    }
    function escape(   c, n, m) {
      c = peek(); i++
      if (c == "\"" || c == "\\" || c == "/") return c
      if (c ~ /^[bfnrt]$/) return " "
      if (c != "u") bad()
      n = hex4()
      if (n >= 55296 && n < 56320 && substr(t, i, 2) == "\\u") {
        i += 2; m = hex4()
        if (m < 56320 || m > 57343) bad()
        n = 65536 + (n - 55296) * 1024 + m - 56320
      }
      return utf8(n)
    }
    function string(   s, n) {
      if (peek() != "\"") bad()
      i++; s = ""
      for (;;) {
        if (match(substr(t, i), /^[^"\\\001-\037]+/)) { s = s substr(t, i, RLENGTH); i += RLENGTH }
        n = peek(); i++
        if (n == "\"") return s
        if (n != "\\") bad()
        s = s escape()
      }
    }
    function value(path,   c, n) {
      blank(); c = peek()
      if (c == "\"") print path "=" string()
      else if (c == "{" || c == "[") {
        if (++depth > 32) bad()
        if (path != "") print path "=" c
        i++; blank(); n = 0
        if (peek() == (c == "{" ? "}" : "]")) i++
        else for (;;) {
          blank()
          if (c == "{") { key = string(); blank(); if (peek() != ":") bad(); i++ } else key = n++
          value(path == "" ? key : path "." key); blank()
          if (peek() == ",") { i++; continue }
          if (peek() != (c == "{" ? "}" : "]")) bad()
          i++; break
        }
        depth--
      }
      else if (match(substr(t, i), /^(true|false|null|-?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]+)?)/)) {
        print path "=" substr(t, i, RLENGTH); i += RLENGTH
      }
      else bad()
    }
    { t = t $0 "\n" }
    END { i = 1; blank(); if (peek() != "{") bad(); value(""); blank(); if (i <= length(t)) bad() }'
}

# A field of the last JSON answer.
field() { sed -n "s/^$1=//p" "$WORK/fields" | head -n 1; }

# A header of the last answer, by its name in lower case. A proxy may have put a head of its own before.
header() {
  LC_ALL=C awk -v name="$1" '
    /^HTTP\// { found = "" }
    { sub(/\r$/, ""); colon = index($0, ":") }
    colon && tolower(substr($0, 1, colon - 1)) == name { found = substr($0, colon + 1); sub(/^[ \t]+/, "", found) }
    END { print found }' "$WORK/head"
}

# What the last answer means for a request that wants json, a payload or a script. 0: what was wanted.
# 1: the server refused: CODE_OF_ERROR, MESSAGE, RETRY_AFTER. 2: no usable answer: WHY.
judge() {
  CODE_OF_ERROR='' MESSAGE='' RETRY_AFTER=''
  [ "$HTTP" != 000 ] || return 2
  RETRY_AFTER=$(header retry-after)
  case $RETRY_AFTER in *[!0-9]* | ????????*) RETRY_AFTER='' ;; esac
  case $1$HTTP in
    payload200)
      right_digest && return 0
      WHY='the setup script does not have the checksum that the server names'
      return 2
      ;;
    script200)
      [ "$(tail -n 1 "$WORK/body")" != "$LAST_LINE" ] || return 0
      WHY='the answer was cut, or is not this installer'
      return 2
      ;;
  esac
  flatten < "$WORK/body" > "$WORK/fields" || : > "$WORK/fields"
  CODE_OF_ERROR=$(field error.code) MESSAGE=$(field error.message)
  case $HTTP in
    2??)
      grep -q '^data={' "$WORK/fields" && return 0
      WHY='the answer was cut, or is not from the activation server'
      ;;
    3??) WHY="HTTP $HTTP, a redirect, instead of an answer" ;;
    408 | 5??) WHY="HTTP $HTTP${MESSAGE:+: $MESSAGE}" ;;
    *)
      [ -z "$CODE_OF_ERROR" ] || return 1
      WHY="HTTP $HTTP, and not from the activation server"
      ;;
  esac
  return 2
}

# Asks until there is a usable answer: WHAT KIND METHOD PATH [TOKEN]. Returns what `judge` says. All
# requests of this file may be repeated: the server gives the same machine the same answer.
ask() {
  what=$1 kind=$2 attempt=1 delay=1
  shift 2
  while :; do
    request "$@"
    judge "$kind"
    verdict=$?
    [ "$verdict" = 2 ] || return "$verdict"
    if [ -n "$IS_FINAL" ] || [ "$attempt" -ge "$TRIES" ]; then return 2; fi
    wait=$delay
    [ "${RETRY_AFTER:-0}" -le "$wait" ] || wait=$RETRY_AFTER
    [ "$wait" -le 60 ] || wait=60
    warn "$what: $WHY. Try $((attempt + 1)) of $TRIES in $wait s."
    pause "$wait"
    attempt=$((attempt + 1))
    [ "$delay" -ge 16 ] || delay=$((delay * 2))
  done
}

# Whether the body has the SHA-256 of the header Repr-Digest (RFC 9530).
right_digest() {
  wanted=$(header repr-digest | sed -n 's/.*sha-256=:\([A-Za-z0-9+/=]*\):.*/\1/p')
  [ -n "$wanted" ] || return 1
  if command -v sha256sum > /dev/null && command -v base64 > /dev/null; then
    hex=$(say "$wanted" | base64 -d 2> /dev/null | od -An -tx1 | tr -d ' \n')
    sum=$(sha256sum < "$WORK/body")
    [ "$hex" = "${sum%% *}" ]
  else
    [ "$wanted" = "$(openssl dgst -sha256 -binary < "$WORK/body" | openssl base64 -A)" ]
  fi
}

# ---------------------------------------------------------------- what is kept

set_paths() {
  ETC=$ROOT/etc/iptunnel
  LIB=$ROOT/var/lib/iptunnel
  AGENT=$ROOT/usr/local/sbin/iptunnel-agent
  AGENT_LIB=${STATE_DIRECTORY:-$ROOT/var/lib/iptunnel-agent}
  UNITS=$ROOT/etc/systemd/system
}

# Writes standard input to a file as a whole or not at all: FILE MODE.
write_file() {
  if (umask 077 && cat > "$1.new") && chmod "$2" "$1.new" && { sync "$1.new" 2> /dev/null || sync; } && mv -f "$1.new" "$1"; then
    return 0
  fi
  rm -f "$1.new"
  return 1
}

# The state of an installation. STEP is what was last begun or done:
#   (empty) nothing is held    activating  the code may be held; the answer may be lost
#   activated  it is held      payload     the setup script has been started
#   confirming the setup script succeeded; the answer may be lost
#   confirmed  the code is spent; registration and agent are to be done
# INSTALLED says whether an installation was finished, whatever is going on now.
save() {
  STEP=$1
  write_file "$LIB/$PRODUCT.state" 600 << EOT || fail 8 "$LIB/$PRODUCT.state cannot be written: is the disk full?"
STEP=$STEP
INSTALLED=$INSTALLED
HINT=$HINT
KEPT_NAME=$HOST_NAME
KEPT_IP=$IP
KEPT_CODE=${STEP:+$CODE}
ACTIVATION=$ACTIVATION
TOKEN=${STEP:+$TOKEN}
EOT
}

# Sets variables from a file of lines `key=value`: FILE KEY... A key that is not there becomes empty.
read_values() {
  file=$1
  shift
  for key in "$@"; do
    content=$(sed -n "s/^$key=//p" "$file" 2> /dev/null | head -n 1)
    eval "$key=\$content"
  done
}

load() { read_values "$LIB/$PRODUCT.state" STEP INSTALLED HINT KEPT_NAME KEPT_IP KEPT_CODE ACTIVATION TOKEN; }

# Nothing is held any more. A finished installation stays finished.
forget() {
  STEP='' ACTIVATION='' TOKEN=''
  [ -z "$DRY_RUN" ] || return 0
  if [ -n "$INSTALLED" ]; then save ''; else rm -f "$LIB/$PRODUCT.state"; fi
}

# What the agent knows: its server and its id there.
load_agent() { read_values "$ETC/agent.conf" AGENT_URL SERVER_ID; }

# The first characters and the last ones of the code, as the server shows it.
hint_of() { say "$1" | sed 's/^\(.\{11\}\).*\(.\{6\}\)$/\1...\2/'; }

# ---------------------------------------------------------------- checks

is_root() { [ -n "$ROOT" ] || [ "$(id -u)" = 0 ]; }

# The nearest folder above a path that exists.
existing() {
  folder=$1
  while [ ! -d "$folder" ]; do folder=$(dirname "$folder"); done
  say "$folder"
}

find_client() {
  if command -v curl > /dev/null; then CLIENT=curl
  elif wget --version 2> /dev/null | grep -q 'GNU Wget 1'; then CLIENT=wget
  else
    fail 8 'this needs curl or GNU wget (the wget of busybox shows secrets to all users of the machine).' \
      'Install one: apt-get install curl, dnf install curl, or apk add curl.'
  fi
}

check_machine() {
  is_root || fail 8 'this needs root. Run it with sudo, or with --root DIR to install below a folder.'
  for tool in awk sed grep od tr cat head tail mv rm mkdir chmod date df dirname sleep sync mktemp; do
    command -v "$tool" > /dev/null || fail 8 "this machine lacks the tool $tool."
  done
  if ! command -v sha256sum > /dev/null || ! command -v base64 > /dev/null; then
    command -v openssl > /dev/null || fail 8 'this machine lacks sha256sum and base64, and openssl too.'
  fi
  find_client
  for folder in "$ETC" "$LIB" "$AGENT"; do
    folder=$(existing "$folder")
    [ -w "$folder" ] || fail 8 "$folder cannot be written: is it mounted read-only?"
    free=$(df -Pk "$folder" | awk 'NR == 2 { print $4 }')
    case $free in '' | *[!0-9]*) continue ;; esac
    [ "$free" -ge 8192 ] || fail 8 "the disk of $folder has $free KiB left. 8 MiB are needed: make room and run this again."
  done
}

# The seconds since 1970 of a date such as `Fri, 27 Nov 2026 09:52:27 GMT`.
seconds_of() {
  say "$1" | awk '{
    m = (index("JanFebMarAprMayJunJulAugSepOctNovDec", $3) + 2) / 3; y = $4 - (m < 3); m += (m < 3) * 12
    split($5, c, ":")
    days = 365 * y + int(y / 4) - int(y / 100) + int(y / 400) + int((153 * m - 457) / 5) + $2 - 719469
    printf "%d", days * 86400 + c[1] * 3600 + c[2] * 60 + c[3]
  }'
}

# Whether the server can be reached, what address it sees, and whether the clocks agree.
check_server() {
  say "Checking $SERVER_URL ..."
  FAMILY=ipv4 # tunnel servers are mostly known by their IPv4 address
  request GET /api/v2/address
  judge json || { FAMILY='' && ask 'Asking the server' json GET /api/v2/address; }
  verdict=$?
  FAMILY=''
  # An older server does not know the question. It is reached all the same.
  [ "$verdict" != 2 ] || fail 4 "$SERVER_URL: $WHY. Nothing was changed, and a code is still good."
  [ "$verdict" != 0 ] || SEEN_IP=$(field data.ip)
  date=$(header date)
  case $date in
    ???,\ ??\ ???\ ????\ ??:??:??\ GMT)
      apart=$(($(now) - $(seconds_of "$date")))
      [ "${apart#-}" -le 300 ] || warn "Note: this machine's clock is $(span "${apart#-}") off the server's. Please set it (NTP)."
      ;;
  esac
  case $SERVER_URL in
    https://* | http://127.* | http://localhost* | http://\[::1\]*) ;;
    *) warn 'Note: the server is reached without encryption (http). Whoever is on the way can read the code.' ;;
  esac
}

# Brings this file itself to $WORK/self, to be the agent: from where it was started, or from the server.
take_self() {
  if [ -f "$0" ] && [ "$(tail -n 1 "$0")" = "$LAST_LINE" ]; then
    cp "$0" "$WORK/self" && return 0
  fi
  IS_LARGE=yes
  ask 'Fetching the agent' script GET "/$PRODUCT/install.sh"
  verdict=$?
  IS_LARGE=''
  [ "$verdict" = 0 ] || fail 4 "the agent could not be fetched: ${MESSAGE:-$WHY}. Nothing was changed, and a code is still good."
  mv "$WORK/body" "$WORK/self"
}

# One installer at a time. The lock names its process and the boot, so that one left by a crash is void.
take_lock() {
  boot=$(cat /proc/sys/kernel/random/boot_id 2> /dev/null)
  say "$$ $boot" > "$LIB/lock.$$"
  holder='' holder_boot=''
  [ ! -f "$LIB/lock" ] || read -r holder holder_boot < "$LIB/lock"
  if [ "$holder_boot" != "$boot" ] || ! kill -0 "${holder:-$$}" 2> /dev/null; then rm -f "$LIB/lock"; fi
  ln "$LIB/lock.$$" "$LIB/lock" 2> /dev/null && HAS_LOCK=yes
  rm -f "$LIB/lock.$$"
  [ -n "$HAS_LOCK" ] || fail 8 "another installer is running on this machine (process $holder)."
}

# shellcheck disable=SC2317,SC2329 # the trap calls it
clean_up() {
  [ -z "$WORK" ] || rm -rf "$WORK"
  [ -z "$HAS_LOCK" ] || rm -f "$LIB/lock"
}

open_work() {
  if [ -n "$DRY_RUN" ]; then
    WORK=$(mktemp -d) || fail 8 'no temporary folder can be made.'
    return 0
  fi
  { mkdir -p "$LIB" && chmod 700 "$LIB"; } || fail 8 "$LIB cannot be made: is the disk full or read-only?"
  take_lock
  rm -rf "$LIB/work"
  mkdir "$LIB/work" || fail 8 "$LIB/work cannot be made: is the disk full?"
  WORK=$LIB/work
}

# ---------------------------------------------------------------- code, host name, address

read_code() {
  if [ -n "$CODE_FILE" ]; then
    [ -r "$CODE_FILE" ] || fail 2 "$CODE_FILE cannot be read."
    read -r CODE < "$CODE_FILE" || [ -n "$CODE" ] || fail 2 "$CODE_FILE is empty."
  elif [ -z "$CODE" ]; then
    eval "CODE=\${$CODE_VARIABLE:-}"
  fi
  unset "$CODE_VARIABLE" # the setup script has no use for it
  tidy_code
}

tidy_code() {
  CODE=$(say "$CODE" | tr -d ' \t\r\n' | tr '[:lower:]' '[:upper:]')
  case $CODE in *[!A-Z0-9-]*) fail 3 'this is not an install code. It looks like IPT-SD-XXXXXX-XXXXXX-XXXXXX.' ;; esac
}

ask_code() {
  can_ask || fail 2 "no install code was given. Give it as argument, in \$$CODE_VARIABLE or with --code-file." \
    "$SERVER_URL/$PRODUCT issues codes."
  question "Install code (from $SERVER_URL/$PRODUCT): "
  CODE=$REPLY
  tidy_code
}

is_host_name() {
  say "$1" | grep -Eq '^([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$' &&
    case ${1##*.} in *[!0-9]*) ;; *) return 1 ;; esac
}

choose_binding() {
  [ -n "$HOST_NAME" ] || HOST_NAME=$KEPT_NAME
  [ -n "$HOST_NAME" ] || HOST_NAME=$(hostname -f 2> /dev/null) || HOST_NAME=$(uname -n)
  while ! is_host_name "$HOST_NAME"; do
    can_ask || fail 2 "\"$HOST_NAME\" is not a full host name. Give one such as ns1.example.com with --hostname."
    say "\"$HOST_NAME\" is not a full host name, such as ns1.example.com."
    question 'Host name of this machine: '
    HOST_NAME=$REPLY
  done
  [ -n "$IP" ] || IP=$KEPT_IP
  [ -n "$IP" ] || IP=$SEEN_IP
  case $IP in
    '') fail 2 'the server does not say which address it sees. Give the public address with --ip.' ;;
    *[!0-9A-Fa-f.:]*) fail 2 "\"$IP\" is not an IP address." ;;
  esac
}

plan() {
  say "This installs $PRODUCT from $SERVER_URL:" \
    && say "  host name  $HOST_NAME" \
    && say "  address    $IP" \
    && say "  code       $(hint_of "$CODE")" \
    && say "  it runs    the product's setup script, if the server has one, and an agent that checks in" \
    && say "  it writes  $AGENT, $ETC, $LIB, $AGENT_LIB"
}

agree() {
  can_ask || [ -n "$YES" ] || fail 2 'there is no terminal to ask whether to go on. Give --yes to install unattended.'
  [ -z "$YES" ] || return 0
  question 'Go on? [Y/n] '
  case $REPLY in '' | [Yy]*) ;; *) fail 7 'you said no. Nothing was changed, and the code is still good.' ;; esac
}

# ---------------------------------------------------------------- the conversation

to_install() { ask "$1" json POST "/api/v2/$PRODUCT/install/$2"; }

precheck() {
  cat > "$WORK/send" << EOT
{"install_code":"$CODE","machine_id":"$MACHINE_ID","ssh_fingerprint":"$MACHINE_ID","product":"$PRODUCT","installer_version":"$VERSION"}
EOT
  to_install 'Checking the code' precheck || return $?
  PRECHECK_TOKEN=$(field data.precheck_token)
}

activate() {
  cat > "$WORK/send" << EOT
{"install_code":"$CODE","precheck_token":"$PRECHECK_TOKEN","hostname":"$HOST_NAME","public_ip":"$IP","machine_id":"$MACHINE_ID","ssh_fingerprint":"$MACHINE_ID","product":"$PRODUCT","installer_version":"$VERSION"}
EOT
  to_install 'Activating' activate || return $?
  ACTIVATION=$(field data.activation_id) TOKEN=$(field data.install_token)
}

confirm() {
  cat > "$WORK/send" << EOT
{"activation_id":"$ACTIVATION","install_token":"$TOKEN"}
EOT
  to_install 'Confirming' confirm
}

# Gives the code back. RELEASED is then `released`, `confirmed` (it was installed after all), or empty (no
# answer).
release() {
  RELEASED=''
  cat > "$WORK/send" << EOT
{"activation_id":"$ACTIVATION","install_token":"$TOKEN"}
EOT
  to_install 'Giving the code back' release
  case $? in
    0) RELEASED=$(field data.status) RESTORED=$(field data.install_code_restored) ;;
    1) [ "$CODE_OF_ERROR" != activation_not_found ] || RELEASED=released RESTORED=true ;;
  esac
}

# Before an end that is no success: gives back what is held, and says what is true now. Changes `failed`,
# the exit status, where the status that was meant would say too much.
settle() {
  case $STEP in
    '') return 0 ;;
    confirmed)
      failed=9
      warn 'The product is installed and the code is spent. What is left: registration and agent. Run the same command again.'
      return 0
      ;;
  esac
  TRIES=2
  # The answer to activate is lost: the same machine may ask again, and then knows what to give back.
  if [ "$STEP" = activating ] && [ -n "$PRECHECK_TOKEN" ]; then
    activate
    [ $? != 1 ] || { forget && warn 'The code was not used.' && return 0; }
  fi
  RELEASED=''
  [ -z "$ACTIVATION" ] || release
  case $RELEASED in
    released)
      # What the server says about it is in RESTORED: a code may be over by now.
      forget
      if [ "$RESTORED" = true ]; then warn 'The code was given back: it is good again for a few minutes.'
      else warn 'The installation was given up. The code is over by now: get a new one.'; fi
      ;;
    confirmed)
      failed=9
      save confirmed
      warn 'The server has confirmed this installation. What is left: registration and agent. Run the same command again.'
      ;;
    *)
      failed=4
      warn 'The code could not be given back. The server may hold it for this machine: run the same command' \
        'again within 10 minutes, and the installation goes on.'
      ;;
  esac
}

# shellcheck disable=SC2317,SC2329 # the trap calls it
interrupted() {
  trap '' INT TERM HUP
  if [ -n "$CHILD" ]; then
    kill -s TERM -- "-$CHILD" 2> /dev/null || kill "$CHILD" 2> /dev/null
    wait "$CHILD" 2> /dev/null
  fi
  [ -n "$STEP" ] || fail 7 'interrupted. No code was used.'
  fail 7 'interrupted.'
}

# Ends with the words for a refusal: WHAT failed.
refused() {
  new_code="Get a new one at $SERVER_URL/$PRODUCT."
  case $CODE_OF_ERROR in
    install_code_not_found) fail 3 "the server does not know this code. Check it for typing errors. $new_code" ;;
    install_code_used) fail 3 "this code has been used by another machine. $new_code" ;;
    install_code_expired) fail 3 "this code has expired. $new_code" ;;
    install_code_max_activations) fail 3 "this code has been tried too many times. $new_code" ;;
    product_mismatch) fail 3 "this code is for another product than $PRODUCT. $new_code" ;;
    validation_error) fail 3 "the server does not take this: $MESSAGE A code looks like IPT-SD-XXXXXX-XXXXXX-XXXXXX." ;;
    activation_not_found) fail 4 'the server has given this installation up meanwhile. Run the same command again.' ;;
    token_invalid | precheck_token_invalid | token_mismatch)
      fail 3 "the time for this installation is over ($MESSAGE). $new_code" ;;
    invalid_binding) fail 2 "the server does not take host name $HOST_NAME or address $IP: $MESSAGE Give others with --hostname or --ip." ;;
    rate_limit_exceeded)
      fail 5 "this machine or network has reached the server's limit. Come back in $(span "${RETRY_AFTER:-3600}")," \
        "at $(at_time $(($(now) + ${RETRY_AFTER:-3600})))." ;;
    *) fail 1 "$1: the server says: $MESSAGE ($CODE_OF_ERROR)" ;;
  esac
}

unanswered() { fail 4 "$1: $WHY."; }

# Fetches the setup script to $LIB/$PRODUCT.payload. 1: the server has none.
fetch_payload() {
  IS_LARGE=yes
  ask 'Fetching the setup script' payload GET "/api/v2/$PRODUCT/install/payload" "$TOKEN"
  verdict=$?
  IS_LARGE=''
  case $verdict in
    0) write_file "$LIB/$PRODUCT.payload" 700 < "$WORK/body" || fail 8 "$LIB/$PRODUCT.payload cannot be written: is the disk full?" ;;
    1)
      # A server of an older version has no such route.
      case $CODE_OF_ERROR in payload_not_found | not_found) return 1 ;; esac
      refused 'Fetching the setup script'
      ;;
    *)
      case $WHY in *checksum*) fail 6 "$WHY." ;; esac
      unanswered 'Fetching the setup script'
      ;;
  esac
}

# Runs the setup script: install or uninstall. In the background, so that a signal is heard at once.
run_payload() {
  (
    cd "${ROOT:-/}" || exit 1
    IPTUNNEL_PRODUCT=$PRODUCT IPTUNNEL_IP=$IP IPTUNNEL_HOSTNAME=$HOST_NAME IPTUNNEL_SERVER_URL=$SERVER_URL
    IPTUNNEL_ACTIVATION=$ACTIVATION IPTUNNEL_MACHINE_ID=$MACHINE_ID IPTUNNEL_ROOT=$ROOT
    export IPTUNNEL_PRODUCT IPTUNNEL_IP IPTUNNEL_HOSTNAME IPTUNNEL_SERVER_URL IPTUNNEL_ACTIVATION IPTUNNEL_MACHINE_ID IPTUNNEL_ROOT
    # A process group of its own, so that a signal reaches what the script has started as well.
    if command -v setsid > /dev/null; then exec setsid "$LIB/$PRODUCT.payload" "$1"; fi
    exec "$LIB/$PRODUCT.payload" "$1"
  ) < /dev/null &
  CHILD=$!
  wait "$CHILD"
  status=$?
  CHILD=''
  return "$status"
}

# Takes the code for this machine. On a terminal a person may give another if the server refuses it.
obtain() {
  while :; do
    precheck
    verdict=$?
    [ "$verdict" != 2 ] || unanswered 'Checking the code'
    if [ "$verdict" = 1 ]; then
      # What this machine held was held for too long.
      [ -z "$STEP" ] || [ "$CODE_OF_ERROR" != install_code_used ] || CODE_OF_ERROR=token_invalid
      forget # whatever was begun before: the machine that holds a code is let through
      can_ask || refused 'Checking the code'
      case $CODE_OF_ERROR in install_code_* | product_mismatch | validation_error) ;; *) refused 'Checking the code' ;; esac
      warn "The server refuses this code: $MESSAGE"
      ask_code
      continue
    fi
    [ -z "$DRY_RUN" ] || return 0
    save activating
    activate
    case $? in
      0) save activated && return 0 ;;
      1)
        forget # refused, so nothing is held
        [ "$CODE_OF_ERROR" = precheck_token_invalid ] || refused 'Activating'
        ;;
      *) unanswered 'Activating' ;;
    esac
  done
}

set_up_product() {
  if fetch_payload; then
    say "Running the setup script of $PRODUCT ..."
    save payload
    run_payload install || fail 6 "the setup script of $PRODUCT failed with status $status. Its own words are above."
  else
    say "The server has no setup script for $PRODUCT: this installs the agent alone."
  fi
  save confirming
}

# Confirms, also for the second time. 1: the server knows nothing of this activation any more.
finish_code() {
  confirm
  case $? in
    0) ;;
    1)
      case $CODE_OF_ERROR in
        token_used) ;; # the answer to an earlier confirm was lost
        activation_not_found) return 1 ;;
        # An earlier confirm may have come through, and the token run out since. Release tells.
        token_invalid)
          release
          [ -n "$RELEASED" ] || unanswered 'Confirming'
          [ "$RELEASED" = confirmed ] || { forget && fail 3 "the setup took longer than the server waits. Get a new code at $SERVER_URL/$PRODUCT and run this again."; }
          ;;
        *) refused 'Confirming' ;;
      esac
      ;;
    *) unanswered 'Confirming' ;;
  esac
  save confirmed
}

# Registers this machine with a token of its own, which is on disk before it is sent: a lost answer is
# asked for again with the same token.
register() {
  { mkdir -p "$ETC" && chmod 755 "$ETC"; } || fail 8 "$ETC cannot be made: is the disk full?"
  [ -s "$ETC/agent.token" ] || say "ipa_$(random_hex 24)" | write_file "$ETC/agent.token" 600 || fail 8 "$ETC/agent.token cannot be written."
  cat > "$WORK/send" << EOT
{"token":"$TOKEN","ip":"$IP","hostname":"$HOST_NAME","agent_token":"$(cat "$ETC/agent.token")"}
EOT
  # A server that is known there already is given only to a machine that comes from its address.
  case $SEEN_IP in *:*) ;; "$IP") FAMILY=ipv4 ;; esac
  ask 'Registering' json POST /api/v2/servers/register
  registered=$? FAMILY=''
  case $registered in
    0) SERVER_ID=$(field data.server_id) ;;
    1)
      case $CODE_OF_ERROR in
        revoked) fail 9 'this machine was revoked by the operator of the server. Ask the operator to restore it.' ;;
        token_invalid | unauthorized | credential_used) fail 9 "registering: $MESSAGE The hour for it may be over: run this again with a new code." ;;
        *) fail 9 "registering: the server says: $MESSAGE ($CODE_OF_ERROR)" ;;
      esac
      ;;
    *) fail 9 "registering: $WHY." ;;
  esac
}

# ---------------------------------------------------------------- setting up the agent

write_agent() {
  mkdir -p "$(dirname "$AGENT")" "$ETC" || fail 8 "$(dirname "$AGENT") cannot be made: is the disk full?"
  write_file "$AGENT" 755 < "$WORK/self" || fail 8 "$AGENT cannot be written: is the disk full?"
  write_file "$ETC/agent.conf" 644 << EOT || fail 8 "$ETC/agent.conf cannot be written: is the disk full?"
AGENT_URL=$SERVER_URL
SERVER_ID=$SERVER_ID
EOT
  # Whoever installs again wants the agent to run: what it was told before is void.
  rm -f "$AGENT_LIB/status" "$LIB/revoked"
}

has_systemd() { [ -z "$ROOT" ] && [ -d /run/systemd/system ] && command -v systemctl > /dev/null; }
has_cron() { [ -z "$ROOT" ] && command -v crontab > /dev/null && { pidof cron || pidof crond; } > /dev/null 2>&1; }

# Replaces the agent's line in root's crontab by this one, or by none.
set_cron() {
  {
    crontab -l 2> /dev/null | grep -v "$AGENT"
    [ -z "$1" ] || say "$1"
  } > "$WORK/crontab"
  crontab - < "$WORK/crontab"
}

# LoadCredential= came with systemd 247. Before, the agent runs as root without any capability.
units() {
  mkdir -p "$UNITS" || return 1
  version=$(systemctl --version 2> /dev/null | sed -n '1s/^systemd \([0-9]*\).*/\1/p')
  user='DynamicUser=yes
LoadCredential=agent.token:/etc/iptunnel/agent.token'
  [ "${version:-247}" -ge 247 ] || user='User=root'
  write_file "$UNITS/iptunnel-agent.service" 644 << EOT || return 1
[Unit]
Description=IPTunnel agent: checks in with the activation server, if it is time
Wants=network-online.target
After=network-online.target
OnFailure=iptunnel-revoked.service

[Service]
Type=oneshot
ExecStart=/usr/local/sbin/iptunnel-agent run --unit
$user
StateDirectory=iptunnel-agent
StateDirectoryMode=0700
TimeoutStartSec=5min
# Systemd's own two lines a minute would fill the journal.
SyslogLevel=notice
LogLevelMax=notice
UMask=0077
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
ProtectHome=yes
ProtectProc=invisible
ProcSubset=pid
ProtectClock=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectControlGroups=yes
PrivateTmp=yes
PrivateDevices=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
RemoveIPC=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
EOT
  write_file "$UNITS/iptunnel-agent.timer" 644 << 'EOT' || return 1
[Unit]
Description=Asks the IPTunnel agent every minute whether it is time to check in

[Timer]
OnCalendar=minutely
RandomizedDelaySec=20s
AccuracySec=10s

[Install]
WantedBy=timers.target
EOT
  # The agent has no rights. What a revocation asks for is done as root, in a unit of its own.
  write_file "$UNITS/iptunnel-revoked.service" 644 << 'EOT'
[Unit]
Description=Stops the IPTunnel agent and runs /etc/iptunnel/on-revoked, if the server has revoked this machine

[Service]
Type=oneshot
ExecStart=/usr/local/sbin/iptunnel-agent revoked
EOT
}

start_agent() {
  if [ -n "$ROOT" ]; then
    units || fail 8 "$UNITS cannot be written."
    first_check_in
    say "Nothing was started, because of --root. To check in once: $AGENT --root $ROOT run"
  elif has_systemd; then
    { units && systemctl daemon-reload; } || fail 8 "$UNITS cannot be written, or systemd refuses it."
    if [ -n "$NO_START" ]; then
      say 'Start it with: systemctl enable --now iptunnel-agent.timer'
    else
      systemctl start iptunnel-agent.service
      systemctl --quiet enable --now iptunnel-agent.timer || fail 8 'systemd does not start iptunnel-agent.timer.'
      show_status
    fi
  elif [ -n "$NO_START" ]; then
    say "Start it with: $AGENT loop"
  elif has_cron; then
    set_cron "* * * * * $AGENT run" || fail 8 "root's crontab cannot be changed."
    first_check_in
  else
    first_check_in
    nohup "$AGENT" loop > /dev/null 2>&1 < /dev/null &
    say "There is neither systemd nor cron: the agent runs until the next boot. Start \"$AGENT loop\" at boot."
  fi
}

first_check_in() {
  [ -z "$NO_START" ] || return 0
  "$AGENT" ${ROOT:+--root "$ROOT"} run --now
  show_status
}

# ---------------------------------------------------------------- installing

install() {
  check_machine
  open_work
  load
  load_agent
  # Kept for good: the server gives this machine what this machine holds.
  [ -z "$DRY_RUN" ] || [ -s "$LIB/machine-id" ] || MACHINE_ID=dry-run
  if [ -z "$MACHINE_ID" ]; then
    [ -s "$LIB/machine-id" ] || say "ipm-$(random_hex 16)" | write_file "$LIB/machine-id" 600 ||
      fail 8 "$LIB/machine-id cannot be written: is the disk full?"
    MACHINE_ID=$(cat "$LIB/machine-id")
  fi
  if [ -n "$AGENT_URL" ] && [ "$AGENT_URL" != "$SERVER_URL" ]; then
    for other in "$LIB"/*.state; do
      [ ! -f "$other" ] || [ "$other" = "$LIB/$PRODUCT.state" ] ||
        fail 8 "the agent of this machine belongs to $AGENT_URL, for ${other##*/}. A machine has one server: uninstall that first."
    done
  fi
  read_code
  check_server
  [ -n "$DRY_RUN" ] || take_self

  if [ -n "$INSTALLED" ] && [ -z "$STEP" ] && [ -n "$SERVER_ID" ] && { [ -z "$CODE" ] || [ "$(hint_of "$CODE")" = "$HINT" ]; }; then
    say "$PRODUCT is installed on this machine. This replaces the agent."
    [ -n "$DRY_RUN" ] || { agree && finish; }
    return 0
  fi
  if [ -n "$STEP" ]; then
    if [ -z "$CODE" ] || [ "$CODE" = "$KEPT_CODE" ]; then
      CODE=$KEPT_CODE
      say "An installation was begun before ($STEP). This goes on with it."
    elif [ -z "$DRY_RUN" ]; then
      say 'An installation with another code was begun before. This gives it up.'
      [ -z "$ACTIVATION" ] || release
      forget
    fi
  fi
  choose_binding
  [ -n "$CODE" ] || [ -n "$DRY_RUN" ] || ask_code
  plan
  [ -n "$DRY_RUN" ] || agree

  if [ -n "$DRY_RUN" ]; then
    STEP=''
    if [ -n "$CODE" ]; then obtain && say 'The code is good.'; fi
    say 'This was a dry run: nothing was changed.'
    return 0
  fi
  # What was held before is asked for again: the server gives its holder the same activation, or a new one
  # after a release that came late.
  [ "$STEP" != confirming ] || finish_code || STEP=''
  if [ "$STEP" != confirmed ]; then
    obtain && set_up_product
    finish_code || { obtain && set_up_product && finish_code; } || refused 'Confirming'
  fi
  register
  finish
}

# Sets up the agent of a confirmed and registered installation.
finish() {
  write_agent
  INSTALLED=yes
  [ -z "$CODE" ] || HINT=$(hint_of "$CODE")
  start_agent
  save ''
  say "Done: $PRODUCT is installed. This machine is server $SERVER_ID at $SERVER_URL."
}

# ---------------------------------------------------------------- uninstalling

# Uninstalls one product, and the agent with the last one.
uninstall() {
  [ -d "$LIB" ] || { say 'Nothing is installed.' && return 0; }
  [ -z "$DRY_RUN" ] || { say "This would undo the setup script of $PRODUCT and remove the installer's files." && return 0; }
  can_ask || [ -n "$YES" ] || fail 2 'there is no terminal to ask. Give --yes to uninstall unattended.'
  if [ -z "$YES" ]; then
    question "Uninstall $PRODUCT? [y/N] "
    case $REPLY in [Yy]*) ;; *) fail 7 'you did not say yes. Nothing was changed.' ;; esac
  fi
  begin_uninstall
  uninstall_product
  for other in "$LIB"/*.state; do
    [ ! -f "$other" ] || { say "The agent stays: ${other##*/} needs it." && return 0; }
  done
  remove_agent
}

uninstall_all() {
  begin_uninstall
  for state in "$LIB"/*.state; do
    [ -f "$state" ] || continue
    PRODUCT=${state##*/}
    PRODUCT=${PRODUCT%.state}
    uninstall_product
  done
  remove_agent
}

begin_uninstall() {
  is_root || fail 8 'this needs root, or --root DIR.'
  open_work
  MACHINE_ID=$(cat "$LIB/machine-id" 2> /dev/null)
  load_agent
}

uninstall_product() {
  load
  HOST_NAME=$KEPT_NAME IP=$KEPT_IP CODE=$KEPT_CODE
  # What is not confirmed goes back to the server. Its words are settle's.
  case $STEP in
    '' | confirmed) ;;
    *) find_client && settle && STEP='' ;;
  esac
  if [ -f "$LIB/$PRODUCT.payload" ]; then
    say "Undoing the setup script of $PRODUCT ..."
    STEP=''
    run_payload uninstall ||
      fail 6 "the setup script failed to uninstall (status $status). Mend it and run this again, or remove $LIB/$PRODUCT.payload first."
  fi
  rm -f "$LIB/$PRODUCT.payload" "$LIB/$PRODUCT.state"
}

remove_agent() {
  if has_systemd; then systemctl --quiet disable --now iptunnel-agent.timer iptunnel-agent.service 2> /dev/null; fi
  if has_cron; then set_cron ''; fi
  # A loop ends once its configuration is gone.
  rm -f "$UNITS/iptunnel-agent.service" "$UNITS/iptunnel-agent.timer" "$UNITS/iptunnel-revoked.service" \
    "$ETC/agent.conf" "$ETC/agent.token" "$AGENT"
  if has_systemd; then systemctl daemon-reload; fi
  rm -rf "$AGENT_LIB" "$ROOT/var/lib/private/iptunnel-agent"
  [ ! -f "$ETC/on-revoked" ] || say "$ETC/on-revoked is yours, and stays."
  rmdir "$ETC" 2> /dev/null
  rm -rf "$LIB"
  HAS_LOCK=''
  say "Uninstalled.${SERVER_ID:+ The server still lists this machine as $SERVER_ID: ask its operator to delete it.}"
}

# ---------------------------------------------------------------- the agent

# What is known of check-ins: STATE is ok, failing, refused (the server does not know this machine) or
# revoked. Times are seconds since 1970.
load_status() {
  read_values "$AGENT_LIB/status" STATE LAST_TRY LAST_OK NEXT FAILURES SAID
  for key in LAST_TRY LAST_OK NEXT FAILURES; do
    eval "content=\$$key"
    case $content in '' | *[!0-9]*) eval "$key=0" ;; esac
  done
}

save_status() {
  mkdir -p "$AGENT_LIB" && chmod 700 "$AGENT_LIB"
  write_file "$AGENT_LIB/status" 600 << EOT
STATE=$STATE
LAST_TRY=$LAST_TRY
LAST_OK=$LAST_OK
NEXT=$NEXT
FAILURES=$FAILURES
SAID=$SAID
EOT
}

# The next try, in so many seconds less up to a tenth, so that machines do not come all at once, and none
# comes so late that the server calls it silent.
next_in() {
  spread=$(($1 / 10))
  [ "$spread" -lt 1 ] || spread=$(($(od -An -N2 -tu2 /dev/urandom) * spread / 65536))
  NEXT=$((LAST_TRY + $1 - spread))
}

# One check-in. Says what it did only where something changed.
check_in() {
  before=$STATE
  LAST_TRY=$(now)
  printf '{}' > "$WORK/send"
  request POST "/api/v2/servers/$SERVER_ID/check-in" "$(cat "${CREDENTIALS_DIRECTORY:-$ETC}/agent.token")"
  judge json
  case $? in
    0)
      if [ "$(field data.status)" = revoked ]; then STATE=revoked
      else
        STATE=ok LAST_OK=$LAST_TRY FAILURES=0 SAID=ok
        seconds=$(field data.next_checkin_seconds)
        case $seconds in '' | 0 | *[!0-9]* | ????????*) seconds=86400 ;; esac
        next_in "$seconds"
      fi
      ;;
    1)
      SAID="$MESSAGE ($CODE_OF_ERROR)"
      case $HTTP$CODE_OF_ERROR in
        403revoked) STATE=revoked ;;
        # Nothing that this machine does changes that. Once a day, in case the operator mends it.
        401* | 404*) STATE=refused FAILURES=$((FAILURES + 1)) && next_in 86400 ;;
        *) back_off ;;
      esac
      ;;
    *) SAID=$WHY && back_off ;;
  esac
  [ "$STATE" != revoked ] || SAID=revoked
  save_status || warn "The status cannot be written to $AGENT_LIB: is the disk full?"
  [ "$STATE" = "$before" ] || say "Check-in: $STATE$(words)"
}

# What the server said, where that is more than the state.
words() { [ "$SAID" = "$STATE" ] || say "${SAID:+ ($SAID)}"; }

# From one minute to one hour, longer each time, or what the server asks for.
back_off() {
  STATE=failing FAILURES=$((FAILURES + 1))
  if [ "$FAILURES" -gt 6 ]; then seconds=3600; else seconds=$((60 << (FAILURES - 1))); fi
  if [ "${RETRY_AFTER:-0}" -gt "$seconds" ]; then seconds=$RETRY_AFTER; fi
  [ "$seconds" -le 86400 ] || seconds=86400
  next_in "$seconds"
}

# Whether it is time. A clock that was set back must not silence the agent.
is_due() { [ "$(now)" -ge "$NEXT" ] || [ "$(now)" -lt "$LAST_TRY" ]; }

# Once the server has revoked this machine: stops the agent, then runs the operator's hook, once.
after_revocation() {
  load_status
  [ "$STATE" = revoked ] || return 0
  if has_systemd; then systemctl --quiet disable --now iptunnel-agent.timer; elif has_cron; then set_cron ''; fi
  [ ! -e "$LIB/revoked" ] && now > "$LIB/revoked" || return 0
  say 'The server has revoked this machine. The agent stops.'
  [ -x "$ETC/on-revoked" ] || return 0
  IPTUNNEL_ROOT=$ROOT "$ETC/on-revoked" < /dev/null || warn "$ETC/on-revoked failed with status $?."
}

show_status() {
  load_status
  if [ "$LAST_OK" = 0 ]; then last=never; else last=$(at_time "$LAST_OK"); fi
  say "Agent: ${STATE:-not yet run}$(words). Last check-in: $last."
  case $STATE in
    ok) say "Next check-in: $(at_time "$NEXT")." ;;
    failing | refused) say "Failed $FAILURES times. Next try: $(at_time "$NEXT")." ;;
    revoked) say 'It has stopped. Ask the operator to restore this machine, then run the installer again.' ;;
  esac
}

agent() {
  case ${1:-} in
    --root)
      [ -d "${2:-}" ] || { agent_usage >&2 && exit 2; }
      ROOT=$(cd "$2" && pwd)
      set_paths
      shift 2
      ;;
  esac
  case ${1:-} in
    status | run | loop | revoked | uninstall) ;;
    -h | --help | help) agent_usage && exit 0 ;;
    *) agent_usage >&2 && exit 2 ;;
  esac
  load_agent
  [ -n "$SERVER_ID" ] || { warn "This machine is not registered: $ETC/agent.conf is missing." && exit 8; }
  SERVER_URL=$AGENT_URL
  case $1 in
    status)
      is_root || fail 8 'this needs root.'
      say "Server $SERVER_ID at $SERVER_URL" && show_status
      ;;
    revoked) after_revocation ;;
    uninstall) uninstall_all ;;
    *)
      find_client
      WORK=$(mktemp -d) || exit 8
      if [ "$1" = run ]; then run_agent "${2:-}"; else loop_agent; fi
      ;;
  esac
}

run_agent() {
  load_status
  [ "$STATE" != revoked ] || return 0
  if [ "$1" = --now ] || is_due; then check_in; fi
  [ "$STATE" = revoked ] || return 0
  # Under systemd this failure starts iptunnel-revoked.service, which is root.
  [ "$1" != --unit ] || exit 3
  after_revocation
}

# Ends once the agent is uninstalled, or another loop has begun, as after an upgrade.
loop_agent() {
  mkdir -p "$AGENT_LIB" && say "$$" > "$AGENT_LIB/loop"
  while [ -f "$ETC/agent.conf" ] && [ "$(cat "$AGENT_LIB/loop" 2> /dev/null)" = "$$" ]; do
    run_agent ''
    [ "$STATE" != revoked ] || break
    pause 10
  done
}

# ---------------------------------------------------------------- the command line

options() {
  while [ $# -gt 0 ]; do
    case $1 in
      --code-file | --ip | --hostname | --server | --product | --root | --timeout | --tries)
        [ -n "${2:-}" ] || fail 2 "$1 needs a value."
        ;;
    esac
    case $1 in
      --yes) YES=yes ;;
      --dry-run) DRY_RUN=yes ;;
      --uninstall) UNINSTALL=yes ;;
      --no-start) NO_START=yes ;;
      --code-file) CODE_FILE=$2 && shift ;;
      --ip) IP=$2 && shift ;;
      --hostname) HOST_NAME=$2 && shift ;;
      --server) SERVER_URL=$2 && shift ;;
      --product) PRODUCT=$2 CODE_VARIABLE='@' && shift ;;
      --root) ROOT=$2 && shift ;;
      --timeout) TIMEOUT=$2 && shift ;;
      --tries) TRIES=$2 && shift ;;
      --help | -h) usage && exit 0 ;;
      -*) fail 2 "there is no option $1. See --help." ;;
      *)
        [ -z "$CODE" ] || fail 2 'two codes were given. See --help.'
        CODE=$1
        ;;
    esac
    shift
  done
  SERVER_URL=${SERVER_URL%/}
  case $SERVER_URL in
    @*) fail 2 'give the server with --server, such as https://get.example.com.' ;;
    *[!A-Za-z0-9:/._~%\[\]-]* | *://) fail 2 "\"$SERVER_URL\" is not the address of a server." ;;
    http://* | https://*) ;;
    *) fail 2 "\"$SERVER_URL\" does not begin with https:// (or http://)." ;;
  esac
  case $PRODUCT in '' | *[!a-z0-9-]*) fail 2 'give the product with --product, such as slowdns.' ;; esac
  case $CODE_VARIABLE in
    '' | [!A-Z]* | *[!A-Z0-9_]*) CODE_VARIABLE=$(say "$PRODUCT" | tr 'a-z-' 'A-Z_')_INSTALL_CODE ;;
  esac
  case $TIMEOUT$TRIES in *[!0-9]* | 0*) fail 2 '--timeout and --tries are whole numbers, from 1.' ;; esac
  if [ -n "$ROOT" ]; then
    [ -n "$DRY_RUN" ] || mkdir -p "$ROOT" || fail 8 "$ROOT cannot be made."
    [ ! -d "$ROOT" ] || ROOT=$(cd "$ROOT" && pwd)
  fi
}

main() {
  set -u
  umask 022
  PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
  YES='' DRY_RUN='' UNINSTALL='' NO_START='' CODE='' CODE_FILE='' IP='' HOST_NAME='' ROOT='' TIMEOUT=15 TRIES=6
  WORK='' HAS_LOCK='' CHILD='' STEP='' SEEN_IP='' FAMILY='' IS_LARGE='' MACHINE_ID='' RETRY_AFTER='' PRECHECK_TOKEN=''
  trap clean_up EXIT
  set_paths
  case ${0##*/} in
    iptunnel-agent)
      trap 'exit 143' INT TERM HUP
      agent "$@"
      ;;
    *)
      trap interrupted INT TERM HUP
      options "$@"
      set_paths
      if [ -n "$UNINSTALL" ]; then uninstall; else install; fi
      ;;
  esac
}

# The last line: a download that was cut runs nothing.
{ main "$@"; exit; }
