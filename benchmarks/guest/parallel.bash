#!/bin/bash
# Does the same jobs on as many vCPUs as there are, and says how each kind went, as programs.bash does.
cd "$(dirname "$0")" || exit 1
export LC_ALL=C
. ./plan

many() { seq "$JOBS" | xargs -P "$(nproc)" -I N "$@"; }
work-compute() { many sh -c './compute > compute.N'; }
check-compute() { sort -u compute.*; }
work-compile() { many gcc -O2 -c -o unit.N.o unit.c; }
check-compile() { sha256sum unit.*.o | cut -d ' ' -f 1 | sort -u; }

for name in $NAMES; do
    # Once before, so that programs are in the page cache and in the code caches.
    JOBS=$(nproc) "work-$name" > /dev/null
    echo "programs: begin $name"
    begun=${EPOCHREALTIME/./}
    "work-$name" > said 2>&1
    status=$?
    ended=${EPOCHREALTIME/./}
    echo "programs: worked $name"
    echo "programs: said $name $(tail -n 1 said)"
    echo "programs: end $name $status $((ended - begun)) $("check-$name" | sha256sum | cut -c 1-16)"
done
echo "programs: finished"
