//! Numbered steps at which a test build of the helper can be made to fail or to die.
