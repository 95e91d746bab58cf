//! The orders that were placed.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use weft_contracts::shop::orders::v1::Order;

/// The most orders that are kept: they are in memory.
pub(crate) const MAX_ORDERS: usize = 100_000;

/// Orders by id; ids sort by time.
#[derive(Default)]
pub(crate) struct Store {
    orders: Mutex<BTreeMap<String, Order>>,
}

/// There are [`MAX_ORDERS`] orders, and none is dropped for a new one.
#[derive(Debug)]
pub(crate) struct Full;

impl Store {
    pub(crate) fn add(&self, order: Order) -> Result<(), Full> {
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        if orders.len() >= MAX_ORDERS {
            return Err(Full);
        }
        orders.insert(order.id.clone(), order);
        Ok(())
    }

    pub(crate) fn get(&self, id: &str) -> Option<Order> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    /// At most `limit`, the newest first, of one user or of all.
    pub(crate) fn list(&self, user_id: Option<&str>, limit: usize) -> Vec<Order> {
        let orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        orders.values().rev().filter(|o| user_id.is_none_or(|user| o.user_id == user)).take(limit).cloned().collect()
    }
}
