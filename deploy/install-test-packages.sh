#!/usr/bin/env bash
# Install what the tests run against: Debian's packages, as root or through sudo. Does nothing, and
# asks for nothing, when they are there.
set -euo pipefail

packages=()
command -v nginx >/dev/null || [ -x /usr/sbin/nginx ] || packages+=(nginx-light)
command -v cc >/dev/null || packages+=(gcc libc6-dev) # the benchmarks' crowd
command -v curl >/dev/null || packages+=(curl)
command -v haproxy >/dev/null || [ -x /usr/sbin/haproxy ] || packages+=(haproxy)
command -v caddy >/dev/null || packages+=(caddy)
command -v promtool >/dev/null || packages+=(prometheus)
command -v systemd-analyze >/dev/null || packages+=(systemd)
command -v chromium >/dev/null || packages+=(chromium)
command -v firefox-esr >/dev/null || command -v firefox >/dev/null || packages+=(firefox-esr)
command -v npm >/dev/null || packages+=(npm)
command -v redis-server >/dev/null || packages+=(redis-server)
command -v openssl >/dev/null || packages+=(openssl)
compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null || packages+=(postgresql)
command -v pgbouncer >/dev/null || [ -x /usr/sbin/pgbouncer ] || packages+=(pgbouncer)
# What the documentation's examples are written in: they are run.
command -v ruby >/dev/null || packages+=(ruby)
ruby -e 'require "minitest"' 2>/dev/null || packages+=(ruby-minitest)
ruby -e 'require "redis"' 2>/dev/null || packages+=(ruby-redis)
ruby -e 'require "pg"' 2>/dev/null || packages+=(ruby-pg)
ruby -e 'require "rails"; require "action_controller/railtie"' 2>/dev/null || packages+=(ruby-railties)
ruby -e 'require "webrick"' 2>/dev/null || packages+=(ruby-webrick)
ruby -e 'require "jwt"' 2>/dev/null || packages+=(ruby-jwt)
command -v go >/dev/null || packages+=(golang-go)
[ -d /usr/share/gocode/src/github.com/golang-jwt/jwt ] || packages+=(golang-github-golang-jwt-jwt-dev)
command -v php >/dev/null || packages+=(php-cli)
[ "${#packages[@]}" -eq 0 ] && exit 0

echo "The tests need: ${packages[*]}"
as_root=()
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || {
        echo "Run as root: apt-get install ${packages[*]}" >&2
        exit 1
    }
    as_root=(sudo)
fi
# The packages' own servers shall not start: the tests start theirs on free ports.
"${as_root[@]}" sh -c '
    export DEBIAN_FRONTEND=noninteractive
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        printf "#!/bin/sh\nexit 101\n" >"$policy" && chmod +x "$policy"
        trap "rm -f $policy" EXIT
    fi
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "$@" >/dev/null
' install "${packages[@]}"
