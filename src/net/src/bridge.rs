//! Bridges of the broker's own: made with the first link, removed with the last.
