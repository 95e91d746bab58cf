//! The contract `shop.orders.v1.Orders`.

use std::{
    collections::{BTreeSet, HashMap},
    time::SystemTime,
};

use futures_util::{StreamExt, TryStreamExt, stream};
use tonic::{Code, Request, Response, Status};
use weft_contracts::shop::{
    orders::v1::{self as api, GetRequest, Line, ListRequest, ListResponse, Order, PlaceRequest},
    products::v1 as products,
    users::v1 as users,
};
use weft_kit::{
    Channel, ids, outbound,
    status::{self, Violations},
};

use crate::store::{Full, MAX_ORDERS, Store};

const MAX_ITEMS: usize = 100;
const MAX_QUANTITY: i32 = 1_000;
const MAX_ID_CHARS: usize = 64;
const MAX_LISTED: usize = 1_000;
/// How many products of one order are asked for at the same time.
const PRODUCTS_AT_ONCE: usize = 8;

pub(crate) struct Orders {
    users: users::users_client::UsersClient<Channel>,
    products: products::products_client::ProductsClient<Channel>,
    store: Store,
}

impl Orders {
    pub(crate) fn new(channel: Channel) -> Self {
        Self {
            users: users::users_client::UsersClient::new(channel.clone()),
            products: products::products_client::ProductsClient::new(channel),
            store: Store::default(),
        }
    }

    async fn check_user(&self, id: &str) -> Result<(), Status> {
        match self.users.clone().get(users::GetRequest { id: id.to_owned() }).await {
            Ok(_) => Ok(()),
            Err(refused) if matches!(refused.code(), Code::NotFound | Code::InvalidArgument) => {
                Err(status::not_found("user", id))
            }
            Err(failed) => Err(status::relay("users", &failed)),
        }
    }

    /// The price of each product; `None` while the products service is down.
    async fn prices(&self, ids: BTreeSet<String>) -> Result<HashMap<String, Option<i64>>, Status> {
        stream::iter(ids)
            .map(|id| async move {
                let price = self.price(&id).await?;
                Ok((id, price))
            })
            .buffer_unordered(PRODUCTS_AT_ONCE)
            .try_collect()
            .await
    }

    async fn price(&self, id: &str) -> Result<Option<i64>, Status> {
        match self.products.clone().get(products::GetRequest { id: id.to_owned() }).await {
            // Nobody knows the price: the mesh has answered as the contract of products says.
            Ok(product) if outbound::is_fallback(&product) => {
                tracing::warn!(product = id, "products is down: the order is taken without this price");
                Ok(None)
            }
            Ok(product) => Ok(Some(product.into_inner().price_cents)),
            Err(refused) if matches!(refused.code(), Code::NotFound | Code::InvalidArgument) => {
                Err(status::failed_precondition("PRODUCT", id, &format!("there is no product `{id}`")))
            }
            Err(away) if matches!(away.code(), Code::Unavailable | Code::DeadlineExceeded) => {
                tracing::warn!(
                    product = id,
                    why = away.message(),
                    "products is down: the order is taken without this price"
                );
                Ok(None)
            }
            Err(failed) => Err(status::relay("products", &failed)),
        }
    }
}

#[tonic::async_trait]
impl api::orders_server::Orders for Orders {
    async fn place(&self, request: Request<PlaceRequest>) -> Result<Response<Order>, Status> {
        let request = request.into_inner();
        check(&request)?;
        let wanted = request.items.iter().map(|item| item.product_id.clone()).collect();
        let ((), prices) = tokio::try_join!(self.check_user(&request.user_id), self.prices(wanted))?;
        let order = order(request, &prices)?;
        self.store
            .add(order.clone())
            .map_err(|Full| Status::resource_exhausted(format!("this service keeps at most {MAX_ORDERS} orders")))?;
        Ok(Response::new(order))
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<Order>, Status> {
        let id = request.into_inner().id;
        let mut violations = Violations::new();
        violations.check(ids::is_id(&id), "id", "is not an order's id");
        violations.finish()?;
        let order = self.store.get(&id).ok_or_else(|| status::not_found("order", &id))?;
        Ok(Response::new(order))
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let user_id = request.into_inner().user_id;
        let mut violations = Violations::new();
        violations.check(user_id.chars().count() <= MAX_ID_CHARS, "user_id", "must have at most 64 characters");
        violations.finish()?;
        let user = Some(user_id.as_str()).filter(|user| !user.is_empty());
        Ok(Response::new(ListResponse { orders: self.store.list(user, MAX_LISTED) }))
    }
}

fn check(request: &PlaceRequest) -> Result<(), Status> {
    let mut violations = Violations::new();
    let is_id = |id: &str| (1..=MAX_ID_CHARS).contains(&id.chars().count());
    violations.check(is_id(&request.user_id), "user_id", "must have 1 to 64 characters");
    violations.check((1..=MAX_ITEMS).contains(&request.items.len()), "items", "must have 1 to 100 entries");
    for (n, item) in request.items.iter().enumerate().take(MAX_ITEMS) {
        violations.check(is_id(&item.product_id), format!("items[{n}].product_id"), "must have 1 to 64 characters");
        let is_quantity = (1..=MAX_QUANTITY).contains(&item.quantity);
        violations.check(is_quantity, format!("items[{n}].quantity"), "must be from 1 to 1000");
    }
    violations.finish()
}

/// The order with its prices. It has a total only if the price of each line is known.
fn order(request: PlaceRequest, prices: &HashMap<String, Option<i64>>) -> Result<Order, Status> {
    let lines: Vec<_> = request
        .items
        .into_iter()
        .map(|item| {
            let price_cents = prices.get(&item.product_id).copied().flatten();
            Line { product_id: item.product_id, quantity: item.quantity, price_cents }
        })
        .collect();
    let mut total_cents = Some(0i64);
    for line in &lines {
        let Some((total, price)) = total_cents.zip(line.price_cents) else {
            total_cents = None;
            break;
        };
        let with_line = price.checked_mul(i64::from(line.quantity)).and_then(|sum| sum.checked_add(total));
        total_cents = Some(with_line.ok_or_else(|| Status::out_of_range("the order's total is too large"))?);
    }
    Ok(Order {
        id: ids::new_id(),
        user_id: request.user_id,
        lines,
        total_cents,
        placed_at: Some(SystemTime::now().into()),
    })
}

#[cfg(test)]
mod tests {
    use api::place_request::Item;

    use super::*;

    fn request(items: &[(&str, i32)]) -> PlaceRequest {
        let items = items.iter().map(|(id, quantity)| Item { product_id: (*id).to_owned(), quantity: *quantity });
        PlaceRequest { user_id: "ada".to_owned(), items: items.collect() }
    }

    #[test]
    fn an_order_has_a_total_only_if_every_price_is_known() {
        let price = |cents| HashMap::from([("tea".to_owned(), Some(250)), ("cup".to_owned(), cents)]);
        let both = request(&[("tea", 2), ("cup", 1)]);
        assert_eq!(order(both.clone(), &price(Some(100))).unwrap().total_cents, Some(600));
        let unknown = order(both.clone(), &price(None)).unwrap();
        assert_eq!((unknown.total_cents, unknown.lines[0].price_cents), (None, Some(250)));
        assert_eq!(order(both, &price(Some(i64::MAX))).unwrap_err().code(), Code::OutOfRange);
    }

    #[test]
    fn every_wrong_field_is_named() {
        let refused = check(&request(&[("tea", 1), ("", 0)])).unwrap_err();
        let fields: Vec<_> = status::violations(&refused).into_iter().map(|v| v.field).collect();
        assert_eq!(fields, ["items[1].product_id", "items[1].quantity"]);
        assert!(check(&request(&[])).is_err());
        assert!(check(&request(&[("tea", 1); 101])).is_err());
        assert!(check(&request(&[("tea", 1_000); 100])).is_ok());
    }
}
