//! Memory that a process has freed and not given back.

/// Gives the memory back that was freed, wherever between what is in use it lies. For processes that live long and were copied from
/// one that had much to do: what is not there is not copied again when they are.
///
/// Source: `malloc_trim(3)`, which other C libraries than glibc do not have: there it stays.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: nothing is passed but how much to keep at the end; only memory that nobody has is given back, under the allocator's own locks.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_use_stays() {
        let kept: Vec<Vec<u8>> = (0..256_u32).map(|at| at.to_le_bytes().repeat(1000)).collect();
        let dropped = kept.clone();
        drop(dropped);
        give_back();
        assert!(kept.iter().zip(0_u32..).all(|(bytes, at)| *bytes == at.to_le_bytes().repeat(1000)));
    }
}
