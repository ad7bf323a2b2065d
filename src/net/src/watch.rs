//! What happens behind the helper's back.
