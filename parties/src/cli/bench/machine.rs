//! What the figures were measured on.

use std::fmt;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use sharelens::text;
use sharelens_protocol::ring::kernel::Isa;

/// Processor, threads, instruction set and version.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Machine {
    pub cpu: Option<String>,
    pub cores: Option<usize>,
    pub threads: Option<usize>,
    pub instructions: Option<String>,
    pub system: Option<String>,
    pub version: Option<String>,
    pub commit: Option<String>,
}

impl Machine {
    /// This one.
    pub fn describe(threads: Option<usize>) -> Self {
        Self {
            cpu: cpu(),
            cores: Some(std::thread::available_parallelism().map_or(1, usize::from)),
            threads: Some(threads.unwrap_or_else(rayon::current_num_threads)),
            instructions: Some(format!("{:?}", Isa::detect()).to_lowercase()),
            system: Some(format!("{} {}", std::env::consts::OS, std::env::consts::ARCH)),
            version: Some(env!("CARGO_PKG_VERSION").into()),
            commit: option_env!("SHARELENS_COMMIT").map(Into::into),
        }
    }

    /// What keeps seconds measured on both from being compared.
    pub fn differences(&self, other: &Self) -> Vec<&'static str> {
        let keys = [
            ("cpu", self.cpu != other.cpu),
            ("cores", self.cores != other.cores),
            ("threads", self.threads != other.threads),
            ("instructions", self.instructions != other.instructions),
        ];
        keys.into_iter().filter_map(|(key, differs)| differs.then_some(key)).collect()
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |v: &Option<String>| v.as_deref().map_or_else(|| "unknown".into(), text::one_line);
        let number = |v: Option<usize>| v.map_or_else(|| "unknown".into(), |v| v.to_string());
        write!(
            f,
            "{}, {} threads on {} cores, {}, {}, sharelens {}",
            word(&self.cpu),
            number(self.threads),
            number(self.cores),
            word(&self.instructions),
            word(&self.system),
            word(&self.version),
        )?;
        match &self.commit {
            Some(commit) => write!(f, " at {}", text::one_line(commit)),
            None => Ok(()),
        }
    }
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
