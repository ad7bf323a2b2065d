//! What the helper knows of what it made.
