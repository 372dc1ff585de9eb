#!/bin/bash
# Runs the programs that the file "plan" beside this script names, a line "NAME COUNT" each, and says how each went:
#   programs: begin NAME
#   programs: said NAME TEXT                              (figures of its own, as openssl speed has)
#   programs: end NAME STATUS MICROSECONDS CHECKSUM       (its clock, and a checksum of what check-NAME prints)
# A program is work-NAME, which is timed and gets COUNT, and check-NAME, which is not and fails on a wrong result.
cd "$(dirname "$0")" || exit 1
export LC_ALL=C

speed() { openssl speed -elapsed -mr -seconds "$@"; }
work-openssl-sha256() { speed "$1" -bytes 16384 -evp sha256; }
work-openssl-aes-128-gcm() { speed "$1" -bytes 16384 -evp aes-128-gcm; }
work-openssl-rsa2048() { speed "$1" rsa2048; }
check-openssl-sha256() { openssl dgst -sha256 -r text && [ "$(openssl dgst -sha256 -r text)" = "$(sha256sum -b text)" ]; }
check-openssl-aes-128-gcm() {
    openssl enc -aes-128-ctr -K "$KEY" -iv "$KEY" -in text -out packed && sha256sum < packed &&
        openssl enc -d -aes-128-ctr -K "$KEY" -iv "$KEY" -in packed | cmp - text
}
check-openssl-rsa2048() {
    openssl genrsa -out key.pem 2048 2> /dev/null && openssl rsa -in key.pem -pubout -out public.pem 2> /dev/null &&
        openssl dgst -sha256 -sign key.pem -out signature text &&
        openssl dgst -sha256 -verify public.pem -signature signature text
}
KEY=000102030405060708090a0b0c0d0e0f

pack() { for ((turn = 0; turn < $1; turn++)); do "${@:2}" -c < text > packed && "$2" -d -c < packed > unpacked || return; done; }
check-packed() { cmp unpacked text && sha256sum < packed; }
work-gzip() { pack "$1" gzip -6; }
check-gzip() { check-packed; }
work-xz() { pack "$1" xz -1; }
check-xz() { check-packed; }
work-zstd() { pack "$1" zstd -q -6 --single-thread; }
check-zstd() { check-packed; }

work-7z() {
    for ((turn = 0; turn < $1; turn++)); do
        rm -f packed.7z && 7z a -mx=3 -mmt=1 packed.7z text && 7z e -so packed.7z > unpacked || return
    done
}
check-7z() { cmp unpacked text && sha256sum < unpacked; }

work-python-integers() { python3 -S loops.py integers "$1"; }
work-python-objects() { python3 -S loops.py objects "$1"; }
work-python-strings() { python3 -S loops.py strings "$1"; }
check-python-integers() { cat said; }
check-python-objects() { cat said; }
check-python-strings() { cat said; }

work-gcc() { for ((turn = 0; turn < $1; turn++)); do gcc -O2 -c -o unit.o unit.c || return; done; }
check-gcc() { sha256sum < unit.o; }

work-sqlite3() { for ((turn = 0; turn < $1; turn++)); do rm -f base.db && sqlite3 base.db < inserts.sql || return; done; }
check-sqlite3() {
    sqlite3 base.db 'select count(*), sum(amount), sum(length(note)), sum(id * amount) from entries; pragma integrity_check' |
        tee said && grep -qx ok said
}

work-sysbench-cpu() { sysbench cpu --threads=1 --time=0 --cpu-max-prime=10000 --events="$1" run; }
check-sysbench-cpu() { grep -o 'total number of events: *[0-9]*' said; }
work-sysbench-memory() { sysbench memory --threads=1 --time=0 --memory-block-size=1K --memory-total-size="$1"M run; }
check-sysbench-memory() { grep -o 'Total operations: [0-9]*' said; }

work-shell() {
    /bin/sh -c 'turn=0 sum=0
        while [ $turn -lt $1 ]; do
            /bin/true && sum=$((sum + $(expr $turn % 7 + 1))) && echo $turn | cat > /dev/null || exit 1
            turn=$((turn + 1))
        done
        echo $sum' sh "$1"
}
check-shell() { cat said; }

stress() { stress-ng --verify --metrics-brief --timeout 0 "${@:2}" "$1"; }
work-stress-ng-int64() { stress "$1" --cpu 1 --cpu-method int64 --cpu-ops; }
work-stress-ng-double() { stress "$1" --cpu 1 --cpu-method double --cpu-ops; }
work-stress-ng-matrix() { stress "$1" --matrix 1 --matrix-size 128 --matrix-ops; }
work-stress-ng-vm() { stress "$1" --vm 1 --vm-bytes 16M --vm-ops; }
work-stress-ng-pipe() { stress "$1" --pipe 1 --pipe-ops; }
work-stress-ng-fork() { stress "$1" --fork 1 --fork-ops; }
# Its status is not 0 when a stressor finds a wrong result.
check-stress-ng-int64() { echo verified; }
check-stress-ng-double() { echo verified; }
check-stress-ng-matrix() { echo verified; }
check-stress-ng-vm() { echo verified; }
check-stress-ng-pipe() { echo verified; }
check-stress-ng-fork() { echo verified; }

while read -r name count <&3; do
    echo "programs: begin $name"
    start=${EPOCHREALTIME/./}
    "work-$name" "$count" > said 2> errors
    status=$?
    elapsed=$((${EPOCHREALTIME/./} - start))
    echo "programs: worked $name"
    grep '^+F' said | sed "s/^/programs: said $name /"
    "check-$name" > checked 2>> errors || status=$((status ? status : 255))
    [ "$status" = 0 ] || tail -n 1 errors | sed "s/^/programs: said $name /"
    read -r checksum _ < <(sha256sum < checked)
    echo "programs: end $name $status $elapsed $checksum"
    rm -f said errors checked packed packed.7z unpacked base.db unit.o
done 3< plan
echo "programs: finished"
