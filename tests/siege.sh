#!/usr/bin/env bash
# Three nodes on this machine, each attack for SECONDS (60 by default), an enrolled client that asks meanwhile, and what
# the attacked nodes hold before and after: memory of the processes, bytes of their data.
#
#     bash tests/siege.sh [SECONDS] [ATTACK...]
set -euo pipefail
seconds=${1:-60}
all=(strangers half-open lonely lonely-0 ids uploads)
source "$(dirname "$0")/nodes.sh"
nodes clinic greedy
ask() { "$bin" --quiet infer --cluster cluster.toml --model net --dir keys-clinic "$data"/brain_mri/no_tumor-image_39.jpg > /dev/null; }
for _ in 1 2 3 4 5; do ask; done
attacks=("${@:2}")
if [ ${#attacks[@]} -eq 0 ]; then attacks=("${all[@]}"); fi
for attack in "${attacks[@]}"; do
    echo "== $attack for $seconds s"
    echo "before: $(held)"
    "$examples/siege" $attack --cluster cluster.toml --key keys-greedy/client.key --seconds $seconds &
    attacker=$!
    served=0 failed=0 end=$((SECONDS + seconds - 1))
    while [ $SECONDS -lt $end ]; do if ask 2>> asked.log; then served=$((served + 1)); else failed=$((failed + 1)); fi; done
    wait $attacker
    sleep 1
    echo "after:  $(held)"
    echo "meanwhile $served pictures were served, $failed not"
done
sort asked.log | uniq -c | sort -rn | head -5
