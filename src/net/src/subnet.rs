//! Networks that clash with none of the host's.
