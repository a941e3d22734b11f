# Sourced by the scripts beside it: three nodes on this machine in a directory of their own, as an operator starts them.
# Sets bin, data, dir and pids; all ends with the script.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
cargo build --release --locked -q -p sharelens --bins --examples
bin=$PWD/target/release/sharelens examples=$PWD/target/release/examples data=$PWD/models/data
dir=$(mktemp -d)
declare -A pids=()
trap 'kill -CONT "${pids[@]}" 2>/dev/null || true; kill "${pids[@]}" $(jobs -p) 2>/dev/null || true; rm -rf "$dir"' EXIT
cd "$dir"

# start ROLE
start() {
    "$bin" --log error node run --config "$1/node.toml" >> "$1.log" 2>&1 &
    pids[$1]=$!
}

# nodes KEY...: three nodes for which these clients are enrolled, also as owners.
nodes() {
    local port=$((20000 + RANDOM % 20000)) role who right
    for role in server0 server1 helper; do
        "$bin" --quiet node init --role $role --listen 127.0.0.1:$port --public 127.0.0.1:$port --dir $role
        port=$((port + 1))
    done
    "$bin" --quiet cluster create --cards server0/server0.card server1/server1.card helper/helper.card -o cluster.toml
    for who in "$@"; do "$bin" --quiet client init --name "$who" --dir "keys-$who"; done
    for role in server0 server1 helper; do
        cp cluster.toml $role/
        for who in "$@"; do
            for right in client owner; do "$bin" --quiet node allow "$who.card" --as $right --config $role/node.toml; done
        done
        start $role
    done
    sleep 2
    "$bin" --quiet model prepare "$data/brain_mri_cnn/model.onnx" --calibrate "$data/brain_mri" -o net.slm
    "$bin" --quiet model share net.slm --cluster cluster.toml --name net --dir "keys-$1"
}

# Resident memory, threads and open files of the nodes, and bytes of their data.
held() {
    local role
    for role in server0 server1 helper; do
        awk '/VmRSS/ {printf "%d MiB ", $2 / 1024} /Threads/ {printf "%d threads ", $2}' /proc/${pids[$role]}/status
        printf '%d files, ' "$(ls /proc/${pids[$role]}/fd | wc -l)"
    done
    du -sb server0/data server1/data helper/data | awk '{printf "%d ", $1}'
    echo bytes
}
