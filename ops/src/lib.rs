//! Tensors and layers on shares.
