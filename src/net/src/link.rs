//! One link: the transaction that makes it, and its undo.
