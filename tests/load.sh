#!/usr/bin/env bash
# Three nodes on this machine and CLIENTS clients, each with a key of its own, that send pictures one after the other for
# SECONDS; every answer is compared with that of the first run. With `break`, nodes are killed and started again, and
# stopped for a while, all the time.
#
#     bash tests/load.sh [CLIENTS [SECONDS [break]]]
set -euo pipefail
clients=${1:-16} seconds=${2:-60} breaks=${3:-}
source "$(dirname "$0")/nodes.sh"
names=()
for ((i = 0; i < clients; i++)); do names+=("clinic$i"); done
nodes "${names[@]}"
pictures=("$data"/brain_mri/*.jpg)
class() { grep -o '"class": *"[^"]*"' | head -1; }
# infer CLIENT PICTURE
infer() { "$bin" --json --log error infer --cluster cluster.toml --model net --dir "keys-$1" --deadline 60s "$2"; }
for picture in "${pictures[@]}"; do
    infer clinic0 "$picture" | class > "expected-$(basename "$picture")"
    grep -q class "expected-$(basename "$picture")"
done
echo "before: $(held)"
client() {
    local i=$1 n=$1 picture begun answer
    while [ $SECONDS -lt $end ]; do
        picture=${pictures[$((n++ % ${#pictures[@]}))]}
        begun=$(date +%s%N)
        if answer=$(infer "clinic$i" "$picture" 2>> "errors-$i"); then
            if [ "$(class <<< "$answer")" = "$(cat "expected-$(basename "$picture")")" ]; then
                echo "right $((($(date +%s%N) - begun) / 1000000))"
            else
                echo "wrong $picture"
            fi
        else
            echo "failed"
        fi
    done > "answers-$i"
}
end=$((SECONDS + seconds))
asking=()
for ((i = 0; i < clients; i++)); do client $i & asking+=($!); done
if [ "$breaks" = break ]; then
    while [ $SECONDS -lt $((end - 10)) ]; do
        roles=(server0 server1 helper)
        role=${roles[$((RANDOM % 3))]}
        if [ $((RANDOM % 4)) = 0 ]; then
            kill -STOP ${pids[$role]}; sleep 3; kill -CONT ${pids[$role]}; echo stopped >> broken
        else
            kill -KILL ${pids[$role]}; wait ${pids[$role]} 2> /dev/null || true; sleep 1; start $role; echo killed >> broken
        fi
        sleep $((6 + RANDOM % 6))
    done
fi
wait "${asking[@]}"
sleep 2
echo "after:  $(held)"
if [ -f broken ]; then sort broken | uniq -c; fi
cat answers-* | awk -v s="$seconds" '{n[$1]++} END {printf "%d right, %d wrong, %d failed; %.1f right a second\n", n["right"], n["wrong"], n["failed"], n["right"] / s}'
cat answers-* | awk '$1 == "right" {print $2}' | sort -n | awk '{a[NR] = $1} END {if (NR) printf "milliseconds a picture: median %d, 95 of 100 below %d, longest %d\n", a[int((NR + 1) / 2)], a[int(NR * 0.95)], a[NR]}'
cat errors-* | sed 's/[0-9a-f:.]\{8,\}/../g' | sort | uniq -c | sort -rn | head -8
! grep -q wrong answers-*
