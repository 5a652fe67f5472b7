#!/bin/sh
# Installs a product with its one-time install code. Under the name iptunnel-agent the same file is the
# agent, which checks in afterwards: so the machine needs one file, and both speak to the server alike.
# POSIX sh (dash, bash, busybox), curl or GNU wget, and what every Linux has.
#
# The server that hands this file out fills in two values. A copy without them takes --server and --product.
SERVER='@public_url@'
PRODUCT='@product@'
VERSION='1.0.0'
LAST_LINE='{ main "$@"; exit; }'

usage() {
  cat << 'EOT'
Installs a product with its one-time install code.

  curl -fsSL SERVER/PRODUCT/install.sh | sudo sh -s -- [CODE] [OPTIONS]

The code may also come from the environment, such as SLOWDNS_INSTALL_CODE. On a terminal it asks.

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
  --timeout SECONDS  how long the server may be silent (15)
  --tries COUNT      how often a request is sent that gets no usable answer (6)

Exit status: 0 installed, 1 something unexpected, 2 wrong usage, 3 the server refused the code, 4 no usable
answer, 5 limit reached, 6 the setup script failed, 7 interrupted, 8 this machine lacks something,
9 installed, but not yet registered. Run it again after any failure: it goes on where it stopped.
EOT
}

# ---------------------------------------------------------------- words
say() { printf '%s\n' "$*"; }
warn() { say "$*" >&2; }

# Ends with a status and words. What is held goes back to the server first.
fail() {
  failed=$1 && shift
  trap '' INT TERM HUP
  warn "Error: $*"
  [ -z "$WORK" ] || rm -f "$WORK/reserve"
  settle
  exit "$failed"
}

now() { date +%s; }
# The time of day at that second, where `date` can tell.
at_time() { date -d "@$1" '+%Y-%m-%d %H:%M:%S %Z' 2> /dev/null || say "second $1"; }
can_ask() { [ -z "$YES" ] && (: < /dev/tty) 2> /dev/null; }

# Asks a person. The script itself may be what standard input brings, so the terminal is asked.
question() {
  printf '%s' "$1" > /dev/tty
  IFS= read -r REPLY < /dev/tty || fail 2 'the terminal gave no answer.'
}

agree() {
  [ -z "$YES" ] || return 0
  can_ask || fail 2 'there is no terminal to ask whether to go on. Give --yes to do it unattended.'
  question "$1 [Y/n] "
  case $REPLY in '' | [Yy]*) ;; *) fail 7 'you said no. Nothing was changed.' ;; esac
}

# ---------------------------------------------------------------- requests
# The wget of busybox is refused: it need not check certificates, it shows no answer but a success, and it
# takes the token on its command line, which everybody on the machine can read.
find_client() {
  if command -v curl > /dev/null; then CLIENT=curl QUOTE='"'
  elif wget --version 2> /dev/null | grep -q 'GNU Wget 1'; then CLIENT=wget QUOTE=''
  else
    fail 8 'this needs curl or GNU wget (the wget of busybox is not safe enough).' \
      'Install one: apt-get install curl, dnf install curl, or apk add curl.'
  fi
}

# Sends one request: KIND METHOD PATH [TOKEN]. KIND is what is wanted: json, payload or script. The body of a
# POST is in $WORK/send. Leaves the answer in $WORK/body and $WORK/fields. Returns
#   0  what was wanted
#   1  the server refused: CODE_OF_ERROR, MESSAGE, RETRY_AFTER
#   2  no usable answer: WHY, and IS_FINAL if trying again is no use
# Secrets go through files, since everybody on the machine can read a command line.
request() {
  kind=$1 method=$2 url=$SERVER$3
  HTTP='' WHY='' IS_FINAL='' CODE_OF_ERROR='' MESSAGE='' RETRY_AFTER=''
  for file in head body log request; do true > "$WORK/$file" || IS_FINAL=yes; done
  [ -z "$IS_FINAL" ] || { WHY="$WORK cannot be written" && return 2; }
  [ -z "${4:-}" ] || say "header = ${QUOTE}Authorization: Bearer $4$QUOTE" > "$WORK/request"
  set -- ${ONLY_IPV4:+-4}
  if [ "$CLIENT" = curl ]; then
    [ "$method" = GET ] || set -- "$@" --header 'Content-Type: application/json' --data-binary "@$WORK/send"
    # A large file may take its time as long as it moves.
    curl -q --config "$WORK/request" --silent --show-error --globoff --connect-timeout "$TIMEOUT" \
      --speed-time "$TIMEOUT" --speed-limit 1 --user-agent "iptunnel-install/$VERSION" \
      --dump-header "$WORK/head" --output "$WORK/body" "$@" "$url" < /dev/null 2> "$WORK/log"
  else
    [ "$method" = GET ] || set -- "$@" --header='Content-Type: application/json' --post-file="$WORK/send"
    LC_ALL=C wget --config="$WORK/request" --timeout="$TIMEOUT" --tries=1 --max-redirect=0 \
      --content-on-error --user-agent="iptunnel-install/$VERSION" --server-response \
      --output-document="$WORK/body" --output-file="$WORK/head" "$@" "$url" < /dev/null
  fi
  understand_failure $? || return 2
  understand_answer "$kind"
}

# Sets WHY if curl or wget ended with a status that says that there is no answer.
understand_failure() {
  words=$(sed -n '/^curl: /p; /^ERROR: /p; /^wget: /p' "$WORK/log" "$WORK/head" | head -n 1)
  case "$CLIENT$1 $(cat "$WORK/log" "$WORK/head")" in
    curl0\ * | wget[08]\ *) ;;
    curl[56]\ * | wget4*'unable to resolve'*)
      WHY="the name of $SERVER cannot be resolved: look at the network and at /etc/resolv.conf" ;;
    curl7\ * | wget4*refused* | wget4*unreachable*) WHY='no connection: refused, or no way there' ;;
    curl28\ * | wget4*'timed out'*) WHY="no answer within $TIMEOUT seconds" ;;
    curl23\ * | wget3\ *) WHY='the answer could not be written: is the disk full?' ;;
    curl18\ * | curl52\ * | curl56\ * | wget4*) WHY='the answer was cut' ;;
    curl51\ * | curl60\ * | wget5\ *)
      IS_FINAL=yes
      WHY="the server's certificate is not trusted (TLS). This machine's clock says $(date -u '+%F %R UTC'):"
      WHY="$WHY if that is wrong, set it. Else install ca-certificates, or tell the operator. ($words)" ;;
    *) WHY="$CLIENT ended with status $1: $words" ;;
  esac
  [ -z "$WHY" ]
}

# Reads $WORK/head and $WORK/body, and returns what `request` does.
understand_answer() {
  # Lists headers as `header.date=...`, and what the JSON of this server has as `ip=1.2.3.4`. Nothing of any
  # other body, so that a cut one is noticed. Escaped control characters become blanks: values may be shown.
  LC_ALL=C awk '
    part == 1 {
      sub(/\r$/, "")
      sub(/^  /, "") # wget indents the head
      if (/^HTTP\//) print "header.status=" $2
      colon = index($0, ": ")
      if (colon) print "header." tolower(substr($0, 1, colon - 1)) "=" substr($0, colon + 2)
      next
    }
    length(text) < 65536 { text = text $0 }
    END {
      string = "\"[^\"\\\\\001-\037]*(\\\\.[^\"\\\\\001-\037]*)*\""
      granted = "[{]\"data\":[{].*[}],\"meta\":[{]\"message\":" string "[}][}]"
      refused = "[{]\"error\":[{]\"code\":" string ",\"message\":" string "[}][}]"
      if (text !~ "^(" granted "|" refused ")$") exit
      print "kind=" substr(text, 3, index(text, ":") - 4)
      while (match(text, "\"[a-z_]+\":(" string "|[a-z0-9]+)")) {
        pair = substr(text, RSTART + 1, RLENGTH - 1)
        text = substr(text, RSTART + RLENGTH)
        sub(/":"?/, "=", pair)
        sub(/"$/, "", pair)
        gsub(/\\\\|\\[bfnrt]|\\u..../, " ", pair)
        gsub(/\\/, "", pair)
        print pair
      }
    }' part=1 "$WORK/head" part=2 "$WORK/body" > "$WORK/fields"
  HTTP=$(field header.status) CODE_OF_ERROR=$(field code) MESSAGE=$(field message)
  RETRY_AFTER=$(field header.retry-after)
  case $RETRY_AFTER in *[!0-9]* | 0* | ????????*) RETRY_AFTER='' ;; esac
  case $HTTP$1 in
    200payload) right_digest || WHY='the setup script does not have the checksum that the server names' ;;
    200script)
      [ "$(tail -n 1 "$WORK/body")" = "$LAST_LINE" ] || WHY='the answer was cut, or is not this installer' ;;
    2*) [ "$(field kind)" = data ] || WHY='the answer was cut, or is not from the activation server' ;;
    3*) WHY="HTTP $HTTP, a redirect, instead of an answer" ;;
    408* | 5*) WHY="HTTP $HTTP${MESSAGE:+: $MESSAGE}" ;;
    *)
      [ -z "$CODE_OF_ERROR" ] || return 1
      WHY="HTTP ${HTTP:-without a status}, and not from the activation server"
      ;;
  esac
  [ -z "$WHY" ] || return 2
}

# A field of the last answer. Where a proxy has put a head of its own before, the last one counts.
field() { sed -n "s/^$1=//p" "$WORK/fields" | tail -n 1; }

# Whether the body has the SHA-256 of the header Repr-Digest (RFC 9530).
right_digest() {
  wanted=$(field header.repr-digest | sed -n 's/.*sha-256=:\([A-Za-z0-9+/=]*\):.*/\1/p')
  sum=$(sha256sum < "$WORK/body")
  [ -n "$wanted" ] && [ "$(say "$wanted" | base64 -d | od -An -tx1 | tr -d ' \n')" = "${sum%% *}" ]
}

# Asks until there is a usable answer: WHAT KIND METHOD PATH [TOKEN]. Returns what `request` does, and sets
# ANSWER to that and the code of a refusal. The server gives the same machine the same answer again.
ask() {
  WHAT=$1 attempt=1 delay=1 && shift
  while :; do
    request "$@"
    verdict=$? ANSWER=$?$CODE_OF_ERROR
    if [ "$verdict" != 2 ] || [ -n "$IS_FINAL" ] || [ "$attempt" -ge "$TRIES" ]; then return "$verdict"; fi
    wait=$delay
    [ "${RETRY_AFTER:-0}" -le "$wait" ] || wait=$RETRY_AFTER
    [ "$wait" -le 60 ] || wait=60
    attempt=$((attempt + 1))
    warn "$WHAT: $WHY. Try $attempt of $TRIES in $wait s."
    sleep "$wait" > /dev/null 2>&1 & # so that a signal is heard at once
    wait "$!"
    [ "$delay" -ge 16 ] || delay=$((delay * 2))
  done
}

# Asks with a JSON object of strings: WHAT PATH [KEY VALUE]...
post() {
  what=$1 path=$2 json='' && shift 2
  while [ $# -gt 0 ]; do
    case $2 in *[\"\\]*) fail 2 "$1 must not have quotes or backslashes." ;; esac
    json="$json,\"$1\":\"$2\""
    shift 2
  done
  say "{${json#,}}" > "$WORK/send"
  ask "$what" json POST "$path"
}

# Ends with the words for the last answer.
give_up() {
  case $ANSWER in
    2*) fail 4 "$WHAT: $WHY." ;;
    1install_code_* | 1product_mismatch | 1validation_error)
      fail 3 "$MESSAGE Check it for typing errors, or get a new one at $SERVER/$PRODUCT." ;;
    1token_* | 1precheck_token_invalid)
      fail 3 "the installation took longer than the server waits. Get a new code at $SERVER/$PRODUCT." ;;
    1activation_not_found) fail 4 'the server has given this installation up. Run the same command again.' ;;
    1invalid_binding) fail 2 "$HOST_NAME, $IP: $MESSAGE Give others with --hostname or --ip." ;;
    1revoked) fail 9 'this machine was revoked. Ask the operator of the server to restore it.' ;;
    1rate_limit_exceeded)
      wait=${RETRY_AFTER:-3600}
      fail 5 "this machine or network has reached the server's limit." \
        "Come back in $(((wait + 59) / 60)) minutes, at $(at_time $(($(now) + wait)))." ;;
    *) fail 1 "$WHAT: the server says: $MESSAGE ($CODE_OF_ERROR)" ;;
  esac
}

# ---------------------------------------------------------------- what is kept
set_paths() {
  ETC=$ROOT/etc/iptunnel
  LIB=$ROOT/var/lib/iptunnel
  AGENT=$ROOT/usr/local/sbin/iptunnel-agent
  AGENT_LIB=$ROOT/var/lib/iptunnel-agent TOKENS=$ETC
  UNITS=$ROOT/etc/systemd/system
}

# Writes standard input to a file as a whole or not at all: FILE MODE.
write_file() {
  mkdir -p "${1%/*}" && (umask 077 && cat > "$1.new") && chmod "$2" "$1.new" &&
    { sync "$1.new" 2> /dev/null || sync; } && mv -f "$1.new" "$1" && return 0
  rm -f "$1.new"
  return 1
}
# The same, or the end.
put() { write_file "$@" || fail 8 "$1 cannot be written: is the disk full or read-only?"; }

# Makes a file with a prefix and so many random bytes, unless it is there: FILE PREFIX COUNT.
make_random() {
  [ -s "$1" ] || put "$1" 600 << EOT
$2$(od -An -N"$3" -tx1 /dev/urandom | tr -d ' \n')
EOT
}

# Prints variables as lines `key=value`.
values_of() { for key in "$@"; do eval "say \"$key=\$$key\""; done; }

# Sets variables from a file of such lines: FILE KEY... A key that is not there becomes empty.
read_values() {
  file=$1
  shift
  for key in "$@"; do eval "$key=''"; done
  [ -r "$file" ] || return 0
  while IFS= read -r line; do
    key=${line%%=*}
    case " $* " in *" $key "*) eval "$key=\${line#*=}" ;; esac
  done < "$file"
}

# The state of an installation. INSTALLED says whether one was finished, whatever is going on now. STEP is
# what was last begun or done:
#   (empty)     nothing is held
#   open        the code may be held. ACTIVATION is empty until the answer to activate is there
#   confirming  the product is set up; the answer to confirm may be lost
#   confirmed   the code is spent; registration and agent are to be done
save() {
  STEP=$1 OLD_NAME=$HOST_NAME OLD_IP=$IP OLD_CODE=${1:+$CODE} TOKEN=${1:+$TOKEN}
  put "$LIB/$PRODUCT.state" 600 << EOT
$(values_of STEP INSTALLED HINT OLD_NAME OLD_IP OLD_CODE ACTIVATION TOKEN)
EOT
}

load() { read_values "$LIB/$PRODUCT.state" STEP INSTALLED HINT OLD_NAME OLD_IP OLD_CODE ACTIVATION TOKEN; }

# Nothing is held any more. A finished installation stays finished.
forget() {
  STEP='' ACTIVATION='' TOKEN=''
  if [ -n "$INSTALLED" ]; then save ''; else rm -f "$LIB/$PRODUCT.state"; fi
}
# What the agent knows: its server and its id there.
load_agent() { read_values "$ETC/agent.conf" AGENT_URL SERVER_ID; }
# The first characters and the last ones of the code, as the server shows it.
hint_of() { say "$1" | sed 's/^\(.\{11\}\).*\(.\{6\}\)$/\1...\2/'; }

# The products of this machine, but for one.
products_but() {
  for file in "$LIB"/*.state; do say "$file"; done |
    sed -n 's|.*/\([a-z0-9-]*\)\.state$|\1|p' | grep -vx "$1"
}

# ---------------------------------------------------------------- checks
is_root() { [ -n "$ROOT" ] || [ "$(id -u)" = 0 ]; }

check_machine() {
  for tool in awk base64 cat chmod cp date df grep mkdir mv od rm sed sha256sum sleep sync tail tr; do
    command -v "$tool" > /dev/null || fail 8 "this machine lacks the tool $tool."
  done
  find_client
  for folder in "$ETC" "$LIB" "$AGENT" "$UNITS"; do
    while [ ! -d "$folder" ]; do folder=$(dirname "$folder"); done
    [ -w "$folder" ] || fail 8 "$folder cannot be written: is it mounted read-only?"
    free=$(df -Pk "$folder" | awk 'NR == 2 && $4 ~ /^[0-9]+$/ { print $4 }')
    [ "${free:-8192}" -ge 8192 ] ||
      fail 8 "the disk of $folder has $free KiB left. 8 MiB are needed: make room and run this again."
  done
}

# Whether the server can be reached, what address it sees, and whether the clocks agree.
check_server() {
  say "Checking $SERVER ..."
  ONLY_IPV4=yes # most are known by their IPv4 address
  request json GET /api/v2/address || { ONLY_IPV4='' && ask 'Asking the server' json GET /api/v2/address; }
  [ $? != 2 ] || give_up # an older server does not know the question: it is reached all the same
  ONLY_IPV4='' SEEN_IP=$(field ip) date=$(field header.date)
  # GNU date needs no format, that of busybox does.
  { date=$(date -d "${date:-none}" +%s || date -uD '%a, %d %b %Y %T GMT' -d "$date" +%s || now); } \
    2> /dev/null
  apart=$(($(now) - date))
  [ "${apart#-}" -le 300 ] ||
    warn "Note: this machine's clock is ${apart#-} seconds off the server's. Please set it (NTP)."
  case $SERVER in
    http://127.* | http://localhost* | http://\[::1\]*) ;;
    http:*) warn 'Note: the server is reached without encryption (http): others can read the code.' ;;
  esac
}

# Brings this file itself to $WORK/self, to be the agent: from where it was started, or from the server.
take_self() {
  [ -f "$0" ] && [ "$(tail -n 1 "$0")" = "$LAST_LINE" ] && cp "$0" "$WORK/self" && return 0
  ask 'Fetching the agent' script GET "/$PRODUCT/install.sh" || give_up
  mv "$WORK/body" "$WORK/self"
}

open_temporary() { WORK=$(mktemp -d) || fail 8 'there is no room for temporary files.'; }

# Makes the folder of this run. It is the lock too, with the process and the boot, so that one left by a
# crash is void. Its reserve is given up at a failure: giving the code back needs some room on the disk.
open_work() {
  { mkdir -p "$LIB" && chmod 700 "$LIB"; } || fail 8 "$LIB cannot be made: is the disk full or read-only?"
  boot=$(cat /proc/sys/kernel/random/boot_id 2> /dev/null) holder='' holder_boot=''
  if [ -d "$LIB/work" ]; then
    [ -s "$LIB/work/holder" ] || sleep 1 # it may be just beginning
    { read -r holder holder_boot < "$LIB/work/holder"; } 2> /dev/null
    [ "$holder_boot" != "$boot" ] || ! kill -0 "${holder:-none}" 2> /dev/null ||
      fail 8 "another installer is running on this machine (process $holder)."
    # Moved first: of two that begin now, one finds nothing to move.
    mv "$LIB/work" "$LIB/void.$$" && rm -rf "$LIB/void.$$"
  fi
  mkdir "$LIB/work" || fail 8 "$LIB/work cannot be made: is the disk full, or another installer running?"
  WORK=$LIB/work
  say "$$ $boot" > "$WORK/holder"
  dd if=/dev/zero of="$WORK/reserve" bs=1024 count=64 2> /dev/null
}

read_code() {
  variable=$(say "$PRODUCT" | tr 'a-z-' 'A-Z_')_INSTALL_CODE
  [ -z "$CODE_FILE" ] || read -r CODE < "$CODE_FILE" || [ -n "$CODE" ] || fail 2 "$CODE_FILE has no code."
  [ -n "$CODE" ] || eval "CODE=\${$variable:-}"
  unset "$variable" # the setup script has no use for it
  tidy_code
}

tidy_code() { CODE=$(say "$CODE" | tr '[:lower:]' '[:upper:]' | tr -cd 'A-Z0-9-'); }

ask_code() {
  can_ask || fail 2 "no install code was given. Give it as argument, in \$$variable or with --code-file." \
    "$SERVER/$PRODUCT issues codes."
  question "Install code (from $SERVER/$PRODUCT): "
  CODE=$REPLY && tidy_code
}

choose_binding() {
  HOST_NAME=${HOST_NAME:-$OLD_NAME}
  [ -n "$HOST_NAME" ] || HOST_NAME=$(hostname -f 2> /dev/null) || HOST_NAME=$(uname -n)
  while case $HOST_NAME in *[!A-Za-z0-9.-]*) ;; ?*.?*) false ;; esac; do
    wrong="\"$HOST_NAME\" is not a full host name, such as ns1.example.com."
    can_ask || fail 2 "$wrong Give one with --hostname."
    question "$wrong Host name of this machine: "
    HOST_NAME=$REPLY
  done
  IP=${IP:-${OLD_IP:-$SEEN_IP}}
  [ -n "$IP" ] || fail 2 'the server does not say which address it sees. Give the public address with --ip.'
}

# ---------------------------------------------------------------- the conversation
precheck() {
  post 'Checking the code' "/api/v2/$PRODUCT/install/precheck" install_code "$CODE" product "$PRODUCT" \
    machine_id "$MACHINE_ID" ssh_fingerprint "$MACHINE_ID" installer_version "$VERSION" || return $?
  PRECHECK_TOKEN=$(field precheck_token)
}

activate() {
  post 'Activating' "/api/v2/$PRODUCT/install/activate" install_code "$CODE" product "$PRODUCT" \
    machine_id "$MACHINE_ID" ssh_fingerprint "$MACHINE_ID" installer_version "$VERSION" \
    precheck_token "$PRECHECK_TOKEN" hostname "$HOST_NAME" public_ip "$IP" || return $?
  ACTIVATION=$(field activation_id) TOKEN=$(field install_token)
}

# Gives the code back. RELEASED is then `released`, `confirmed` (it was installed after all), or empty.
release() {
  RELEASED=''
  post 'Giving the code back' "/api/v2/$PRODUCT/install/release" \
    activation_id "$ACTIVATION" install_token "$TOKEN"
  case $ANSWER in
    0*) RELEASED=$(field status) RESTORED=$(field install_code_restored) ;;
    1activation_not_found) RELEASED=released RESTORED=true ;;
  esac
}

# Before an end that is no success: gives back what is held, says what is true now, and sets its status.
settle() {
  TRIES=2 RELEASED='' RESTORED=''
  case $STEP in
    '') RELEASED=nothing ;;
    confirmed) RELEASED=confirmed ;;
    *)
      # The answer to activate is lost: the same machine may ask again, and then knows what to give back.
      [ -n "$ACTIVATION" ] || { { [ -n "$PRECHECK_TOKEN" ] || precheck; } && activate; }
      case $? in 0) release ;; 1) RELEASED=released ;; esac
      ;;
  esac
  [ "$RELEASED" != released ] || forget
  case $RELEASED$RESTORED in
    nothing) case $failed$UNINSTALL in 4 | 7) warn 'No code was used.' ;; esac ;;
    releasedtrue) warn 'The code was given back: it is good again for a few minutes.' ;;
    released*) warn 'This machine does not hold the code any more.' ;;
    confirmed*)
      failed=9 && save confirmed
      warn 'The product is installed and the code is spent. What is left: registration and agent.' \
        'Run the same command again.'
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
  if [ -n "$SETTING_UP" ]; then
    : > "$WORK/stop"
    [ ! -e "$WORK/begun" ] || kill -s TERM -- "-$!" || kill "$!"
    wait "$!"
  fi 2> /dev/null
  fail 7 'interrupted.'
}

# Takes the code for this machine. On a terminal a person may give another one. 1: to be tried once more.
obtain() {
  until precheck; do
    # What this machine held was held for too long.
    [ "${STEP:+$ANSWER}" != 1install_code_used ] || ANSWER=1token_invalid
    # Whatever was begun before: the machine that holds a code is let through.
    [ "${ANSWER#1}" = "$ANSWER" ] || forget
    can_ask || give_up
    case $ANSWER in 1install_code_* | 1product_mismatch | 1validation_error) ;; *) give_up ;; esac
    warn "The server refuses this code: $MESSAGE"
    ask_code
  done
  ACTIVATION='' TOKEN='' && save open
  activate && save open && return 0
  [ "${ANSWER#1}" = "$ANSWER" ] || forget # refused, so nothing is held
  [ "$ANSWER" = 1precheck_token_invalid ] || give_up
  return 1
}

# Fetches the setup script, and runs it.
set_up_product() {
  ask 'Fetching the setup script' payload GET "/api/v2/$PRODUCT/install/payload" "$TOKEN"
  case $ANSWER$WHY in
    0*)
      put "$LIB/$PRODUCT.payload" 700 < "$WORK/body"
      say "Running the setup script of $PRODUCT ..."
      run_payload install ||
        fail 6 "the setup script of $PRODUCT failed with status $status. Its own words are above."
      ;;
    1payload_not_found | 1not_found) # a server of an older version has no such route
      say "The server has no setup script for $PRODUCT: this installs the agent alone." ;;
    *checksum*) fail 6 "$WHY." ;;
    *) give_up ;;
  esac
  save confirming
}

# Runs the setup script: install or uninstall. In the background, so that a signal is heard at once.
run_payload() {
  SETTING_UP=yes
  (
    cd "${ROOT:-/}" || exit 1
    export IPTUNNEL_PRODUCT="$PRODUCT" IPTUNNEL_IP="$IP" IPTUNNEL_HOSTNAME="$HOST_NAME"
    export IPTUNNEL_SERVER_URL="$SERVER" IPTUNNEL_ACTIVATION="$ACTIVATION"
    export IPTUNNEL_MACHINE_ID="$MACHINE_ID" IPTUNNEL_ROOT="$ROOT"
    # Before this point it must not be sent a signal: a shell that was just forked still has all traps.
    : > "$WORK/begun" && [ ! -e "$WORK/stop" ] || exit 1
    # A process group of its own, so that a signal reaches what the script has started as well.
    if command -v setsid > /dev/null; then exec setsid "$LIB/$PRODUCT.payload" "$1"; fi
    exec "$LIB/$PRODUCT.payload" "$1"
  ) < /dev/null &
  wait "$!"
  status=$? SETTING_UP=''
  rm -f "$WORK/begun"
  return "$status"
}

# Confirms, also for the second time. 1: the server knows nothing of this activation any more.
confirm() {
  post 'Confirming' "/api/v2/$PRODUCT/install/confirm" activation_id "$ACTIVATION" install_token "$TOKEN"
  case $ANSWER in
    0* | 1token_used) ;; # the answer to an earlier confirm was lost
    1activation_not_found) return 1 ;;
    1token_invalid)
      release # an earlier confirm may have come through, and the token run out since
      [ "$RELEASED" != released ] || { forget && ANSWER=1token_invalid; }
      [ "$RELEASED" = confirmed ] || give_up
      ;;
    *) give_up ;;
  esac
  save confirmed
}

# Registers this machine with a token of its own, which is on disk before it is sent, and stays there for
# good: a lost answer is asked for again with it, and by it the server knows a machine that comes again.
register() {
  make_random "$ETC/agent.token" ipa_ 24
  # A server that is known there already is given to a machine that comes from its address as well.
  case $SEEN_IP in *:*) ;; "$IP") ONLY_IPV4=yes ;; esac
  post 'Registering' /api/v2/servers/register token "$TOKEN" ip "$IP" hostname "$HOST_NAME" \
    agent_token "$(cat "$ETC/agent.token")" || give_up
  SERVER_ID=$(field server_id) ONLY_IPV4=''
  [ -n "$SERVER_ID" ] || fail 9 'the answer to the registration has no id. Tell the operator of the server.'
}

# ---------------------------------------------------------------- setting up the agent
# LoadCredential= came with systemd 247. An older one is not used.
has_systemd() {
  [ -z "$ROOT" ] && [ -d /run/systemd/system ] &&
    [ "$(systemctl --version | sed -n '1s/^systemd \([0-9]*\).*/\1/p')" -ge 247 ]
} 2> /dev/null

has_cron() { [ -z "$ROOT" ] && command -v crontab && { pidof cron || pidof crond; }; } > /dev/null 2>&1

# Replaces the agent's line in root's crontab by this one, or by none.
set_cron() { { crontab -l 2> /dev/null | grep -v "$AGENT"; [ -z "$1" ] || say "$1"; } | crontab -; }

# Stops what calls the agent.
stop_agent() {
  if has_systemd; then systemctl --quiet disable --now iptunnel-agent.timer 2> /dev/null
  elif has_cron; then set_cron ''; fi
}

put_units() {
  put "$UNITS/iptunnel-agent.service" 644 << 'EOT'
[Unit]
Description=IPTunnel agent: checks in with the activation server, if it is time

[Service]
Type=oneshot
ExecStart=/usr/local/sbin/iptunnel-agent run --unit
# With all rights: stops the agent and runs /etc/iptunnel/on-revoked, if the server has revoked the machine.
ExecStopPost=+/usr/local/sbin/iptunnel-agent revoked
LoadCredential=agent.token:/etc/iptunnel/agent.token
StateDirectory=iptunnel-agent
# Implies ProtectSystem=strict, PrivateTmp=, RemoveIPC=, NoNewPrivileges= and RestrictSUIDSGID=.
DynamicUser=yes
TimeoutSec=5min
# Systemd's own two lines a minute would fill the journal.
SyslogLevel=notice
LogLevelMax=notice
CapabilityBoundingSet=
ProtectHome=yes
ProtectProc=invisible
ProcSubset=pid
ProtectClock=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectControlGroups=yes
PrivateDevices=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
EOT
  put "$UNITS/iptunnel-agent.timer" 644 << 'EOT'
[Unit]
Description=Asks the IPTunnel agent every minute whether it is time to check in

[Timer]
OnCalendar=minutely
RandomizedDelaySec=20s

[Install]
WantedBy=timers.target
EOT
}

start_agent() {
  if [ -n "$ROOT" ] || has_systemd; then put_units; fi
  [ -z "$NO_START" ] || { say 'The agent was not started.' && return 0; }
  if has_systemd; then
    systemctl daemon-reload
    systemctl start iptunnel-agent.service
    systemctl --quiet enable --now iptunnel-agent.timer || fail 8 'systemd does not start the timer.'
  else
    "$AGENT" ${ROOT:+--root "$ROOT"} run --now
    if [ -n "$ROOT" ]; then say "Nothing was started, because of --root. To check in: $AGENT --root $ROOT run"
    elif has_cron; then set_cron "* * * * * $AGENT run" || fail 8 "root's crontab cannot be changed."
    else
      nohup "$AGENT" loop > /dev/null 2>&1 < /dev/null &
      say "There is neither systemd nor cron. Start \"$AGENT loop\" at each boot: it runs until the next one."
    fi
  fi
  show_status
}

# ---------------------------------------------------------------- installing
install() {
  check_machine
  if [ -n "$DRY_RUN" ]; then open_temporary; else open_work; fi
  load
  load_agent
  begun=$STEP
  [ -z "$DRY_RUN" ] || STEP='' # so that nothing is given back
  others=$(products_but "$PRODUCT")
  [ -z "$others" ] || [ "$AGENT_URL" = "$SERVER" ] ||
    fail 8 "this machine belongs to $AGENT_URL, for $others. A machine has one server: uninstall that first."
  read_code
  check_server
  # Kept for good: the server gives this machine what this machine holds.
  [ -n "$DRY_RUN" ] || make_random "$LIB/machine-id" ipm- 16
  MACHINE_ID=$(cat "$LIB/machine-id" 2> /dev/null || say dry-run)

  [ -n "$DRY_RUN" ] || take_self
  if [ -n "${INSTALLED:+$SERVER_ID}" ] && [ -z "$begun" ] && [ "$(hint_of "$CODE")" = "${CODE:+$HINT}" ]; then
    say "$PRODUCT is installed on this machine. This replaces the agent."
    [ -z "$DRY_RUN" ] || return 0
    agree 'Go on?'
    finish
    return
  fi
  if [ -n "$begun" ] && [ "${CODE:-$OLD_CODE}" = "$OLD_CODE" ]; then
    CODE=$OLD_CODE
    say "An installation was begun before ($begun). This goes on with it."
  elif [ -n "$STEP" ]; then
    say 'An installation with another code was begun before. This gives it up.'
    [ -z "$ACTIVATION" ] || release
    forget
  fi
  choose_binding
  [ -n "$CODE$DRY_RUN" ] || ask_code
  say "This installs $PRODUCT from $SERVER:"
  say "  host name $HOST_NAME, address $IP${CODE:+, code $(hint_of "$CODE")}"
  say "  it runs the product's setup script, if the server has one, and an agent that checks in"
  say "  it writes $AGENT, $ETC, $LIB, $AGENT_LIB"
  if [ -n "$DRY_RUN" ]; then
    [ -z "$CODE" ] || { precheck || give_up; }
    say "${CODE:+The code is good. }This was a dry run: nothing was changed."
    return
  fi
  agree 'Go on?'
  # What was held before is asked for again: the server gives its holder the same activation, or a new one.
  until [ "$STEP" = confirmed ] || { [ "$STEP" = confirming ] && confirm; }; do
    obtain && set_up_product
  done
  register
  finish
}

# Sets up the agent of a confirmed and registered installation.
finish() {
  put "$AGENT" 755 < "$WORK/self"
  AGENT_URL=$SERVER
  put "$ETC/agent.conf" 644 << EOT
$(values_of AGENT_URL SERVER_ID)
EOT
  # Whoever installs again wants the agent to run: what it was told before is void.
  rm -f "$AGENT_LIB/status" "$LIB/revoked"
  INSTALLED=yes
  [ -z "$CODE" ] || HINT=$(hint_of "$CODE")
  start_agent
  save ''
  say "Done: $PRODUCT is installed. This machine is server $SERVER_ID at $SERVER."
}

# Uninstalls some products, and the agent with the last one of this machine.
uninstall() {
  open_work
  MACHINE_ID=$(cat "$LIB/machine-id" 2> /dev/null)
  load_agent
  for PRODUCT in $1; do
    load
    HOST_NAME=$OLD_NAME IP=$OLD_IP CODE=$OLD_CODE failed=0
    # What is not confirmed goes back to the server.
    case $STEP in '' | confirmed) ;; *) find_client && settle ;; esac
    STEP=''
    say "Uninstalling $PRODUCT ..."
    [ ! -f "$LIB/$PRODUCT.payload" ] || run_payload uninstall ||
      fail 6 "$LIB/$PRODUCT.payload failed with status $status. Mend or remove it, and run this again."
    rm -f "$LIB/$PRODUCT.payload" "$LIB/$PRODUCT.state"
  done
  [ -z "$(products_but '')" ] || { say 'The agent stays: another product needs it.' && return 0; }
  stop_agent
  rm -f "$UNITS/iptunnel-agent.service" "$UNITS/iptunnel-agent.timer" "$ETC/agent.conf" "$AGENT"
  if has_systemd; then systemctl daemon-reload; fi
  rm -rf "$AGENT_LIB" "$ROOT/var/lib/private/iptunnel-agent" "$LIB" # which ends a loop
  say "Uninstalled.${SERVER_ID:+ The server still lists this machine as $SERVER_ID.}"
  [ ! -f "$ETC/agent.token" ] ||
    say "$ETC/agent.token stays: by it the server knows this machine if you install again. If you never" \
      'will, remove the file, and ask the operator to delete the server.'
  [ ! -f "$ETC/on-revoked" ] || say "$ETC/on-revoked is yours, and stays."
}

# ---------------------------------------------------------------- the agent
# What is known of check-ins. STATE is ok, failing, refused (as a machine that is not known) or revoked.
load_status() {
  read_values "$AGENT_LIB/status" STATE LAST_TRY LAST_OK NEXT FAILURES SAID
  case $LAST_TRY:$LAST_OK:$NEXT:$FAILURES: in
    *[!0-9:]* | :* | *::*) LAST_TRY=0 LAST_OK=0 NEXT=0 FAILURES=0 ;; esac
}

# One check-in. Says what it did only where something changed.
check_in() {
  find_client
  [ -n "$WORK" ] || open_temporary
  before=$STATE LAST_TRY=$(now)
  say '{}' > "$WORK/send"
  token=$(cat "$TOKENS/agent.token")
  request json POST "/api/v2/servers/$SERVER_ID/check-in" "$token"
  case $?$HTTP$CODE_OF_ERROR in
    0*)
      STATE=$(field status) LAST_OK=$LAST_TRY FAILURES=0 SAID=''
      seconds=$(field next_checkin_seconds)
      case $seconds in '' | 0* | *[!0-9]* | ????????*) seconds=86400 ;; esac
      ;;
    1403revoked) STATE=revoked SAID='' seconds=86400 ;;
    *)
      SAID=${WHY:-$MESSAGE ($CODE_OF_ERROR)} FAILURES=$((FAILURES + 1)) STATE=failing
      # From one minute to one hour, longer each time, or what the server asks for.
      if [ "$FAILURES" -gt 6 ]; then seconds=3600; else seconds=$((60 << (FAILURES - 1))); fi
      [ "${RETRY_AFTER:-0}" -le "$seconds" ] || seconds=$RETRY_AFTER
      # Nothing that this machine does changes a refusal. Once a day, in case the operator mends it.
      case $HTTP$CODE_OF_ERROR in 40[14]?*) STATE=refused seconds=86400 ;; esac
      [ "$seconds" -le 86400 ] || seconds=86400
      ;;
  esac
  # Less up to a tenth: machines must not come all at once, and none so late that the server calls it silent.
  NEXT=$((LAST_TRY + seconds - $(od -An -N2 -tu2 /dev/urandom) * (seconds / 10) / 65536))
  values_of STATE LAST_TRY LAST_OK NEXT FAILURES SAID | write_file "$AGENT_LIB/status" 600 ||
    warn "$AGENT_LIB/status cannot be written: is the disk full?"
  [ "$STATE" = "$before" ] || say "Check-in: $STATE${SAID:+ ($SAID)}"
}

# Once the server has revoked this machine: stops the agent, then runs the operator's hook, once.
after_revocation() {
  load_status
  [ "$STATE" = revoked ] || return 0
  stop_agent
  [ ! -e "$LIB/revoked" ] && now > "$LIB/revoked" || return 0
  say 'The server has revoked this machine. The agent stops.'
  [ -x "$ETC/on-revoked" ] || return 0
  IPTUNNEL_ROOT=$ROOT "$ETC/on-revoked" < /dev/null || warn "$ETC/on-revoked failed with status $?."
}

show_status() {
  load_status
  last=never next="Next try: $(at_time "$NEXT")"
  [ "$LAST_OK" = 0 ] || last=$(at_time "$LAST_OK")
  [ "$STATE" != revoked ] || next='It has stopped. Ask the operator to restore it, then install again'
  say "Agent: ${STATE:-not yet run}${SAID:+ ($SAID)}. Last check-in: $last. Failures since: $FAILURES. $next."
}

run_agent() {
  # Only in its own unit: other services of systemd have folders of these names too.
  [ "$1" != --unit ] || AGENT_LIB=${STATE_DIRECTORY:-$AGENT_LIB} TOKENS=${CREDENTIALS_DIRECTORY:-$ETC}
  load_status
  [ "$STATE" != revoked ] || return 0
  # A clock that was set back must not silence the agent.
  if [ "$1" = --now ] || [ "$(now)" -ge "$NEXT" ] || [ "$(now)" -lt "$LAST_TRY" ]; then check_in; fi
  # Under systemd it has no rights, and another command of the unit does this.
  [ "$1" = --unit ] || after_revocation
}

# Ends once the agent is uninstalled, or another loop has begun, as after an upgrade.
loop_agent() {
  mkdir -p "$AGENT_LIB" && say "$$" > "$AGENT_LIB/loop" && STATE=''
  while [ "$STATE" != revoked ] && [ "$(cat "$AGENT_LIB/loop" 2> /dev/null)" = "$$" ]; do
    run_agent ''
    sleep 10 > /dev/null 2>&1 &
    wait "$!"
  done
}

agent() {
  if [ "${1:-}" = --root ] && [ -d "${2:-}" ]; then
    ROOT=$(cd "$2" && pwd)
    set_paths && shift 2
  fi
  case ${1:-} in
    status | run | loop | revoked | uninstall) ;;
    *) fail 2 'use iptunnel-agent [--root DIR] status | run [--now] | loop | uninstall' ;;
  esac
  load_agent
  SERVER=$AGENT_URL
  [ -n "$SERVER_ID" ] || fail 8 "this machine is not registered: $ETC/agent.conf is missing."
  is_root || [ "$1" = run ] || fail 8 'this needs root.'
  case $1 in
    status) say "Server $SERVER_ID at $SERVER" && show_status ;;
    run) run_agent "${2:-}" ;;
    loop) loop_agent ;;
    revoked) after_revocation ;;
    uninstall) uninstall "$(products_but '')" ;;
  esac
}

# ---------------------------------------------------------------- the command line
options() {
  while [ $# -gt 0 ]; do
    name=$(say "${1#--}" | tr 'a-z-' 'A-Z_')
    case $1 in
      --yes | --dry-run | --uninstall | --no-start) eval "$name=yes" ;;
      --code-file | --ip | --hostname | --server | --product | --root | --timeout | --tries)
        [ -n "${2:-}" ] || fail 2 "$1 needs a value."
        [ "$1" != --hostname ] || name=HOST_NAME # bash has a HOSTNAME of its own
        eval "$name=\$2" && shift
        ;;
      --help | -h) usage && exit 0 ;;
      -*) fail 2 "there is no option $1. See --help." ;;
      *) CODE=$1 ;;
    esac
    shift
  done
  SERVER=${SERVER%/}
  case $SERVER in http://?* | https://?*) ;; *) SERVER='?' ;; esac
  case $SERVER in
    *[!A-Za-z0-9:/._~%\[\]-]*) fail 2 'give the server with --server, such as https://get.example.com.' ;;
  esac
  case $PRODUCT in '' | [!a-z]* | *[!a-z0-9-]*) fail 2 'give a product with --product, like slowdns.' ;; esac
  { [ "$TIMEOUT" -ge 1 ] && [ "$TRIES" -ge 1 ]; } 2> /dev/null || fail 2 '--timeout, --tries: numbers from 1.'
  [ -z "$ROOT" ] || [ -n "$DRY_RUN" ] || mkdir -p "$ROOT" || fail 8 "$ROOT cannot be made."
  [ ! -d "$ROOT" ] || ROOT=$(cd "$ROOT" && pwd)
  set_paths
}

main() {
  set -u
  umask 022
  PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
  # A name that the environment brings would pass its new value on to the setup script.
  unset CDPATH CODE TOKEN PRECHECK_TOKEN OLD_CODE REPLY MESSAGE json token
  YES='' DRY_RUN='' UNINSTALL='' NO_START='' CODE='' CODE_FILE='' IP='' HOST_NAME='' ROOT='' TRIES=6
  TIMEOUT=15 WORK='' SETTING_UP='' STEP='' INSTALLED='' SEEN_IP='' ONLY_IPV4='' PRECHECK_TOKEN=''
  trap '[ -z "$WORK" ] || rm -rf "$WORK"' EXIT
  set_paths
  if [ "${0##*/}" = iptunnel-agent ]; then
    trap 'exit 143' INT TERM HUP
    agent "$@"
    return
  fi
  trap interrupted INT TERM HUP
  options "$@"
  is_root || fail 8 'this needs root. Run it with sudo, or with --root DIR to work below a folder.'
  if [ -z "$UNINSTALL" ]; then install
  elif [ ! -d "$LIB" ]; then say 'Nothing is installed.'
  elif [ -n "$DRY_RUN" ]; then say "This would undo the setup script of $PRODUCT, and remove the agent."
  else agree "Uninstall $PRODUCT?" && uninstall "$PRODUCT"; fi
}

# The last line: a download that was cut runs nothing.
{ main "$@"; exit; }
