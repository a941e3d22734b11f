//! What the figures were measured on.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sharelens_protocol::ring::kernel::Isa;

/// Processor, threads, instruction set and version.
pub fn describe(threads: Option<usize>) -> Value {
    json!({
        "cpu": cpu(),
        "cores": std::thread::available_parallelism().map_or(1, usize::from),
        "threads": threads.unwrap_or_else(rayon::current_num_threads),
        "instructions": format!("{:?}", Isa::detect()).to_lowercase(),
        "system": format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        "version": env!("CARGO_PKG_VERSION"),
        "commit": option_env!("SHARELENS_COMMIT"),
    })
}

/// [`describe`] in one line.
pub fn words(machine: &Value) -> String {
    let word = |key: &str| machine[key].as_str().unwrap_or("unknown");
    let commit = machine["commit"].as_str().map(|c| format!(" at {c}")).unwrap_or_default();
    format!(
        "{}, {} threads on {} cores, {}, {}, sharelens {}{commit}",
        word("cpu"),
        machine["threads"],
        machine["cores"],
        word("instructions"),
        word("system"),
        word("version"),
    )
}

fn cpu() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|l| l.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_string())
}

/// Limits the threads of this process; to be called before anything computes.
pub fn set_threads(threads: Option<usize>) -> Result<()> {
    let Some(threads) = threads else { return Ok(()) };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    pool.context("the number of threads cannot be set any more")
}

/// Peak resident memory of a process in bytes, where the system says.
pub fn peak_memory(process: Option<u32>) -> Option<u64> {
    let process = process.map_or_else(|| "self".to_string(), |p| p.to_string());
    let text = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = text.lines().find(|l| l.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? << 10)
}

/// Starts the peak of this process anew, where the system allows.
pub fn forget_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}
