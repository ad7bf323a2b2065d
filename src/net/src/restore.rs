//! Bringing the kernel in agreement with what the engine says ought to be.
