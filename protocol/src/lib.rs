//! What the parties of ShareLens compute together.
#![deny(unsafe_code)]

pub mod ring;
