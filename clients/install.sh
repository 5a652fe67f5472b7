#!/bin/sh
# Installs one product with its one-time install code. The server that hands this file out fills in the
# next three lines; a copy that nobody filled in takes --server and --product.
SERVER_URL='@public_url@'
PRODUCT='@product@'
CODE_VARIABLE='@variable@'

main() {
  echo "install.sh: $PRODUCT from $SERVER_URL, code from the command line or \$$CODE_VARIABLE"
  echo "install.sh: this version installs nothing yet" >&2
  return 1
}

# The last line: a download that was cut runs nothing.
main "$@"
