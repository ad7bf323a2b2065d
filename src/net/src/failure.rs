//! Why an order was not carried out, in words for the caller.
