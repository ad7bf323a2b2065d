//! The helper's loop.
