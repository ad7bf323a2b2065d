//! What the helper gives up before it takes an order.
