#!/bin/sh
# An example of a setup script: a caching name server for the tunnel's clients, from Debian's dnsmasq.
# The installer runs it as root, with `install` or `uninstall`. See docs/payloads.md.
#
# What a setup script owes:
# - `install` may be run again at any time: after a crash, and with each new installation.
# - It ends with a status other than 0 if the product does not run. The code is then given back.
# - `uninstall` undoes it, and may be run again too.
# - With IPTUNNEL_ROOT it writes files below that folder, and starts nothing.
set -eu

config=$IPTUNNEL_ROOT/etc/dnsmasq.d/iptunnel-$IPTUNNEL_PRODUCT.conf

say() { printf '%s\n' "$IPTUNNEL_PRODUCT: $*"; }

set_up() {
  if [ -z "$IPTUNNEL_ROOT" ] && ! command -v dnsmasq > /dev/null; then
    say 'installing dnsmasq'
    apt-get update -qq
    # It must not start before it has its configuration.
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends dnsmasq
  fi
  mkdir -p "${config%/*}"
  # A new file, moved to its place: whoever reads it reads a whole one.
  cat > "$config.new" << END
# Written by the setup script of $IPTUNNEL_PRODUCT for $IPTUNNEL_HOSTNAME.
port=5353
listen-address=127.0.0.1
bind-interfaces
no-resolv
server=9.9.9.9
server=1.1.1.1
cache-size=10000
host-record=$IPTUNNEL_HOSTNAME,$IPTUNNEL_IP
END
  mv "$config.new" "$config"
  say "wrote $config"
  [ -z "$IPTUNNEL_ROOT" ] || return 0
  dnsmasq --test
  systemctl restart dnsmasq
  systemctl is-active --quiet dnsmasq
  say 'dnsmasq answers on 127.0.0.1, port 5353'
}

take_down() {
  rm -f "$config"
  say "removed $config"
  [ -n "$IPTUNNEL_ROOT" ] || ! command -v dnsmasq > /dev/null || systemctl restart dnsmasq
  say 'the package dnsmasq stays: apt-get remove dnsmasq'
}

case ${1:-} in
  install) set_up ;;
  uninstall) take_down ;;
  *) say "use $0 install or $0 uninstall" >&2 && exit 2 ;;
esac
