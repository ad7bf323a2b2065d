//! Router advertisements on the broker's own bridges.
