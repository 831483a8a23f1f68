#!/bin/sh
# dockerd.sh LOG [PIDFILE]: make sure a Docker daemon answers (Debian, as root).
# Installs docker.io and docker-compose if missing, starts dockerd if none answers.
# PIDFILE (default LOG.pid) exists afterwards only if this script started the daemon:
#   [ ! -f LOG.pid ] || kill "$(cat LOG.pid)"
# DOCKERD_ARGS: more flags for dockerd, e.g. --data-root DIR.
set -eu
log=$1 pidfile=${2:-$1.pid}
say() { echo "dockerd.sh: $*"; }
up() { timeout 10 docker info >/dev/null 2>&1; }
# A pid file left by a daemon that is gone must not get a stranger killed.
[ ! -f "$pidfile" ] || grep -qsx dockerd "/proc/$(cat "$pidfile")/comm" || rm -f "$pidfile"
need=
command -v dockerd >/dev/null && command -v docker >/dev/null || need=docker.io
docker compose version >/dev/null 2>&1 || command -v docker-compose >/dev/null || need="$need docker-compose"
if [ -n "$need" ]; then
    say "apt-get install$(printf ' %s' $need)"
    { apt-get update -q && DEBIAN_FRONTEND=noninteractive \
        apt-get install -qy $need iptables; } >>"$log" 2>&1 || # recommends: the client, on newer Debian
        { say "apt-get failed, see $log"; exit 1; }
fi
if up; then say "a daemon answers ($(docker info -f '{{.ServerVersion}}'))"; exit 0; fi
setsid dockerd ${DOCKERD_ARGS-} >>"$log" 2>&1 </dev/null &
pid=$!; echo "$pid" >"$pidfile"
n=0
until up; do
    n=$((n + 1))
    if [ $n -gt 60 ] || ! kill -0 "$pid" 2>/dev/null; then
        kill "$pid" 2>/dev/null || :; rm -f "$pidfile"
        say "dockerd did not come up, the end of $log:"; tail -n 5 "$log"; exit 1
    fi
    sleep 0.5
done
say "started dockerd $(docker info -f '{{.ServerVersion}}') (pid $pid, log $log)"
