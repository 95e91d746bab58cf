//! Receives spans: OTLP over gRPC.

use std::sync::Arc;

use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
    trace_service_server::{TraceService, TraceServiceServer},
};
use tonic::{Request, Response, Status};
use weft_mesh::limits;

use super::Store;

/// Adds exported spans to a [`Store`].
#[derive(Debug)]
pub struct Receiver(Arc<Store>);

/// The gRPC service `opentelemetry.proto.collector.trace.v1.TraceService` for a store.
pub fn receiver(store: Arc<Store>) -> TraceServiceServer<Receiver> {
    TraceServiceServer::new(Receiver(store)).max_decoding_message_size(limits::OTLP_MESSAGE_BYTES)
}

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let taken = self.0.export(request.into_inner());
        let refused = taken.invalid + taken.no_room;
        let partial_success = (refused > 0).then(|| ExportTracePartialSuccess {
            rejected_spans: i64::try_from(refused).unwrap_or(i64::MAX),
            error_message: format!(
                "{} spans without valid ids; {} past {} spans per trace or {} bytes in all",
                taken.invalid,
                taken.no_room,
                limits::SPANS_PER_TRACE,
                limits::TRACE_STORE_BYTES
            ),
        });
        Ok(Response::new(ExportTraceServiceResponse { partial_success }))
    }
}
