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
  if ! command -v dnsmasq > /dev/null; then
    say 'installing dnsmasq'
    apt-get update -qq
    # It starts at once, with the configuration above: on the usual port 53 another server may listen.
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends dnsmasq
  fi
  dnsmasq --test
  # With systemd or without.
  service dnsmasq restart
  service dnsmasq status > /dev/null
  say 'dnsmasq answers on 127.0.0.1, port 5353'
}

take_down() {
  rm -f "$config"
  say "removed $config"
  [ -z "$IPTUNNEL_ROOT" ] || return 0
  # Without a configuration of its own it would take port 53.
  ! command -v dnsmasq > /dev/null || service dnsmasq stop
  say 'stopped dnsmasq; its package stays: apt-get remove dnsmasq'
}

case ${1:-} in
  install) set_up ;;
  uninstall) take_down ;;
  *) say "use $0 install or $0 uninstall" >&2 && exit 2 ;;
esac
