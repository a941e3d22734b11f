//! The `sharelens` command.
fn main() {}
