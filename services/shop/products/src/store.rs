//! The catalogue.

use std::{
    collections::BTreeMap,
    sync::{PoisonError, RwLock},
};

use weft_contracts::shop::products::v1::Product;

/// The most products that the catalogue holds: it is in memory.
pub(crate) const MAX_PRODUCTS: usize = 10_000;

const SEED: [(&str, &str, i64); 12] = [
    ("assam", "Assam, 250 g", 790),
    ("biscuits", "Oat biscuits", 320),
    ("cup", "Cup, white", 850),
    ("darjeeling", "Darjeeling, 250 g", 1190),
    ("espresso", "Espresso beans, 500 g", 1240),
    ("filter-paper", "Filter papers, 100", 290),
    ("honey", "Blossom honey", 560),
    ("kettle", "Kettle, 1.5 l", 3900),
    ("mill", "Coffee mill", 5400),
    ("rooibos", "Rooibos, 250 g", 620),
    ("sencha", "Sencha, 100 g", 980),
    ("teapot", "Teapot, cast iron", 4800),
];

/// Products by id.
pub(crate) struct Store {
    products: RwLock<BTreeMap<String, Product>>,
}

/// The catalogue would hold more than [`MAX_PRODUCTS`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Full;

impl Store {
    pub(crate) fn with_seed() -> Self {
        let seed = SEED.map(|(id, name, price_cents)| {
            (id.to_owned(), Product { id: id.to_owned(), name: name.to_owned(), price_cents })
        });
        Self { products: RwLock::new(BTreeMap::from(seed)) }
    }

    pub(crate) fn get(&self, id: &str) -> Option<Product> {
        self.products.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    /// Products with `part` in their name, ignoring case, sorted by id.
    pub(crate) fn search(&self, part: &str) -> Vec<Product> {
        let part = part.to_lowercase();
        let products = self.products.read().unwrap_or_else(PoisonError::into_inner);
        products.values().filter(|product| product.name.to_lowercase().contains(&part)).cloned().collect()
    }

    /// Adds all of `new`, or none. They replace products with the same ids.
    pub(crate) fn import(&self, new: Vec<Product>) -> Result<(), Full> {
        let mut products = self.products.write().unwrap_or_else(PoisonError::into_inner);
        let added: std::collections::BTreeSet<_> =
            new.iter().map(|p| &p.id).filter(|id| !products.contains_key(*id)).collect();
        if products.len() + added.len() > MAX_PRODUCTS {
            return Err(Full);
        }
        products.extend(new.into_iter().map(|product| (product.id.clone(), product)));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn search_finds_parts_of_names_ignoring_case() {
        let store = Store::with_seed();
        let ids = |part| store.search(part).into_iter().map(|p| p.id).collect::<Vec<_>>();
        assert_eq!(ids("COFFEE"), ["mill"]);
        assert_eq!(ids("").len(), 12);
        assert!(ids("caviar").is_empty());
    }

    #[test]
    fn a_full_catalogue_still_accepts_new_versions_of_its_products() {
        let store = Store::with_seed();
        let product = |n: usize| Product { id: format!("p{n}"), name: "P".to_owned(), price_cents: 1 };
        let room = MAX_PRODUCTS - SEED.len();
        assert_eq!(store.import((0..=room).map(product).collect()), Err(Full));
        assert_eq!(store.get("p0"), None);
        assert_eq!(store.import((0..room).map(product).collect()), Ok(()));
        assert_eq!(store.import(vec![Product { price_cents: 2, ..product(0) }]), Ok(()));
        assert_eq!(store.get("p0").unwrap().price_cents, 2);
    }
}
