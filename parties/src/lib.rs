//! ShareLens as a library: processes, transport, configuration.
