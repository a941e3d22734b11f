#!/usr/bin/env bash
# Three nodes on this machine, each attack for SECONDS (60 by default), an enrolled client that asks meanwhile, and what
# the attacked nodes hold before and after: memory of the processes, bytes of their data.
#
#     bash tests/siege.sh [SECONDS] [ATTACK...]
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-60}
all=(strangers half-open lonely lonely-0 ids uploads)
cargo build --release --locked -q -p sharelens --bins --example siege
bin=$PWD/target/release/sharelens siege=$PWD/target/release/examples/siege data=$PWD/models/data
dir=$(mktemp -d)
pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true; rm -rf "$dir"' EXIT
cd "$dir"
port=$((20000 + RANDOM % 20000))
for role in server0 server1 helper; do
    "$bin" --quiet node init --role $role --listen 127.0.0.1:$port --public 127.0.0.1:$port --dir $role
    port=$((port + 1))
done
"$bin" --quiet cluster create --cards server0/server0.card server1/server1.card helper/helper.card -o cluster.toml
for who in clinic greedy; do "$bin" --quiet client init --name $who --dir keys-$who; done
for role in server0 server1 helper; do
    cp cluster.toml $role/
    for who in clinic greedy; do
        for right in client owner; do "$bin" node allow $who.card --as $right --config $role/node.toml > /dev/null; done
    done
    "$bin" --log error node run --config $role/node.toml > $role.log 2>&1 &
    pids+=($!)
done
sleep 2
"$bin" --quiet model prepare "$data/brain_mri_cnn/model.onnx" --calibrate "$data/brain_mri" -o net.slm
"$bin" --quiet model share net.slm --cluster cluster.toml --name net --dir keys-clinic
ask() { "$bin" --quiet infer --cluster cluster.toml --model net --dir keys-clinic "$data"/brain_mri/no_tumor-image_39.jpg > /dev/null; }
for _ in 1 2 3 4 5; do ask; done
held() { for p in "${pids[@]}"; do awk '/VmRSS/ {printf "%d ", $2 / 1024}' /proc/$p/status; done; printf 'MiB, '; du -sb server0/data server1/data helper/data | awk '{printf "%d ", $1}'; echo bytes; }
attacks=("${@:2}")
if [ ${#attacks[@]} -eq 0 ]; then attacks=("${all[@]}"); fi
for attack in "${attacks[@]}"; do
    echo "== $attack for $seconds s"
    echo "before: $(held)"
    "$siege" $attack --cluster cluster.toml --key keys-greedy/client.key --seconds $seconds &
    attacker=$!
    served=0 failed=0 end=$((SECONDS + seconds - 1))
    while [ $SECONDS -lt $end ]; do if ask 2>> asked.log; then served=$((served + 1)); else failed=$((failed + 1)); fi; done
    wait $attacker
    sleep 1
    echo "after:  $(held)"
    echo "meanwhile $served pictures were served, $failed not"
done
sort asked.log | uniq -c | sort -rn | head -5
