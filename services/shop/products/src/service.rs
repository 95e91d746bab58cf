//! The contract `shop.products.v1.Products`.

use std::pin::Pin;

use futures_util::{Stream, StreamExt, stream};
use tonic::{Request, Response, Status, Streaming};
use weft_contracts::shop::products::v1::{self as api, GetRequest, ImportResponse, Product, SearchRequest};
use weft_kit::status::{self, Violations};

use crate::store::{Full, MAX_PRODUCTS, Store};

const MAX_ID_CHARS: usize = 64;
const MAX_NAME_CHARS: usize = 200;
const MAX_QUERY_CHARS: usize = 200;

pub(crate) struct Products {
    store: Store,
}

impl Products {
    pub(crate) fn new(store: Store) -> Self {
        Self { store }
    }

    async fn take(&self, mut products: impl Stream<Item = Result<Product, Status>> + Unpin) -> Result<i32, Status> {
        let mut taken = Vec::new();
        while let Some(product) = products.next().await {
            let product = product?;
            check(&product, taken.len())?;
            if taken.len() == MAX_PRODUCTS {
                return Err(full());
            }
            taken.push(product);
        }
        let count = i32::try_from(taken.len()).map_err(|_| full())?;
        self.store.import(taken).map_err(|Full| full())?;
        Ok(count)
    }
}

#[tonic::async_trait]
impl api::products_server::Products for Products {
    async fn get(&self, request: Request<GetRequest>) -> Result<Response<Product>, Status> {
        let id = request.into_inner().id;
        let mut violations = Violations::new();
        violations.check(is_product_id(&id), "id", ID_RULE);
        violations.finish()?;
        let product = self.store.get(&id).ok_or_else(|| status::not_found("product", &id))?;
        Ok(Response::new(product))
    }

    type SearchStream = Pin<Box<dyn Stream<Item = Result<Product, Status>> + Send>>;

    async fn search(&self, request: Request<SearchRequest>) -> Result<Response<Self::SearchStream>, Status> {
        let query = request.into_inner().query;
        let mut violations = Violations::new();
        violations.check(query.chars().count() <= MAX_QUERY_CHARS, "query", "must have at most 200 characters");
        violations.finish()?;
        Ok(Response::new(Box::pin(stream::iter(self.store.search(&query)).map(Ok))))
    }

    async fn import(&self, request: Request<Streaming<Product>>) -> Result<Response<ImportResponse>, Status> {
        let imported = self.take(request.into_inner()).await?;
        Ok(Response::new(ImportResponse { imported }))
    }
}

const ID_RULE: &str = "must have 1 to 64 characters of a-z, 0-9 and -";

fn is_product_id(id: &str) -> bool {
    (1..=MAX_ID_CHARS).contains(&id.len())
        && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// Checks the product at `index` of an import.
fn check(product: &Product, index: usize) -> Result<(), Status> {
    let field = |name: &str| format!("[{index}].{name}");
    let mut violations = Violations::new();
    violations.check(is_product_id(&product.id), field("id"), ID_RULE);
    let name_chars = product.name.trim().chars().count();
    violations.check((1..=MAX_NAME_CHARS).contains(&name_chars), field("name"), "must have 1 to 200 characters");
    violations.check(product.price_cents >= 0, field("price_cents"), "must not be negative");
    violations.finish()
}

fn full() -> Status {
    Status::resource_exhausted(format!("the catalogue holds at most {MAX_PRODUCTS} products"))
}

#[cfg(test)]
mod tests {
    use api::products_server::Products as _;
    use tonic::Code;

    use super::*;

    fn product(id: &str, name: &str, price_cents: i64) -> Result<Product, Status> {
        Ok(Product { id: id.to_owned(), name: name.to_owned(), price_cents })
    }

    #[tokio::test]
    async fn an_import_is_accepted_whole_or_not_at_all() {
        let products = Products::new(Store::with_seed());
        let bad = stream::iter([product("tray", "Tray", 100), product("Tray 2", " ", -1)]);
        let refused = products.take(bad).await.unwrap_err();
        let fields: Vec<_> = status::violations(&refused).into_iter().map(|v| v.field).collect();
        assert_eq!(fields, ["[1].id", "[1].name", "[1].price_cents"]);
        assert_eq!(products.store.get("tray"), None);

        let broken = stream::iter([product("tray", "Tray", 100), Err(Status::cancelled("gone"))]);
        assert_eq!(products.take(broken).await.unwrap_err().code(), Code::Cancelled);
        assert_eq!(products.store.get("tray"), None);

        assert_eq!(products.take(stream::iter([product("tray", "Tray", 100)])).await.unwrap(), 1);
        assert_eq!(products.store.get("tray").unwrap().price_cents, 100);
    }

    #[tokio::test]
    async fn an_unknown_product_is_named() {
        let products = Products::new(Store::with_seed());
        let get = |id: &str| products.get(Request::new(GetRequest { id: id.to_owned() }));
        assert_eq!(get("teapot").await.unwrap().into_inner().price_cents, 4800);
        assert_eq!(status::resource(&get("caviar").await.unwrap_err()).unwrap().resource_name, "caviar");
        assert_eq!(get("").await.unwrap_err().code(), Code::InvalidArgument);
    }
}
