"""What the facade serves over gRPC, and over HTTP as JSON."""

from __future__ import annotations

from facade.edge.admin import AdminServicer
from facade.edge.generation import EdgeGenerationServicer
from facade.edge.mesh import MeshServicer
from facade.edge.models import EdgeModelServicer
from facade.edge.server import Served
from facade.services import Services
from mantler.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    generation_pb2,
    generation_pb2_grpc,
    mesh_pb2,
    mesh_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
)


def edge_services(services: Services, mesh: MeshServicer, admin: AdminServicer) -> list[Served]:
    """Every service with who answers it."""
    return [
        Served(
            generation_pb2.DESCRIPTOR.services_by_name["GenerationService"],
            EdgeGenerationServicer(services),
            generation_pb2_grpc.add_GenerationServiceServicer_to_server,
        ),
        Served(
            model_pb2.DESCRIPTOR.services_by_name["ModelService"],
            EdgeModelServicer(services),
            model_pb2_grpc.add_ModelServiceServicer_to_server,
        ),
        Served(
            mesh_pb2.DESCRIPTOR.services_by_name["MeshService"],
            mesh,
            mesh_pb2_grpc.add_MeshServiceServicer_to_server,
            over_http=False,
        ),
        Served(
            admin_pb2.DESCRIPTOR.services_by_name["AdminService"],
            admin,
            admin_pb2_grpc.add_AdminServiceServicer_to_server,
            over_http=False,
        ),
    ]
