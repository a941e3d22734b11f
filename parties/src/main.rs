//! The `sharelens` command.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;

mod cli;

fn main() -> ExitCode {
    let args = cli::Args::parse();
    match cli::run(args).and_then(|()| cli::unwritten()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let code = if e.is::<cli::NotTrusted>() {
                ExitCode::from(cli::NotTrusted::CODE)
            } else {
                ExitCode::FAILURE
            };
            // One sentence: what failed, where, and what to do. Never a backtrace.
            // Names of files and peers may hold anything; they must not steer the terminal.
            let text = format!("{e:#}").replace('\n', " ");
            eprintln!("error: {}", sharelens::text::one_line(&text));
            code
        }
    }
}
