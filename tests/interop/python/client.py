"""Get, put, describe group and transfer leader from Python: by generated stubs and by reflection.

Run by scripts/interop-python, which generates the stubs (kv_pb2, admin_pb2 and their _grpc modules) and has
the packages grpcio and grpcio-reflection. Exits with 0 if every answer was right; any error is fatal.
"""

import argparse
import time

import grpc
from google.protobuf import descriptor_pool, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

import admin_pb2
import admin_pb2_grpc
import kv_pb2
import kv_pb2_grpc

TIMEOUT = 10  # seconds for one call


def expect(condition, what):
    if not condition:
        raise SystemExit(f"interop: {what}")


def wait_for_leader(describe, group, store):
    """A transfer is answered when the old leader has stepped down; the new one is elected a moment later."""
    deadline = time.monotonic() + 30
    while True:
        leader = describe(group).group.leader_store
        if leader == store:
            return
        expect(time.monotonic() < deadline, f"group {group} is led by store {leader}, not by {store}")
        time.sleep(0.1)


def by_stubs(channel, key):
    kv = kv_pb2_grpc.KvStub(channel)
    admin = admin_pb2_grpc.AdminStub(channel)
    kv.Put(kv_pb2.PutRequest(key=key, value=b"from stubs"), timeout=TIMEOUT)
    got = kv.Get(kv_pb2.GetRequest(key=key), timeout=TIMEOUT)
    expect(got.value == b"from stubs", f"got {got}")
    absent = kv.Get(kv_pb2.GetRequest(key=key + b"-absent"), timeout=TIMEOUT)
    expect(not absent.HasField("value"), f"an absent key has a value: {absent}")

    def describe(group):
        return admin.DescribeGroup(admin_pb2.DescribeGroupRequest(group=group), timeout=TIMEOUT)

    described = describe(got.header.group)
    others = [m.store for m in described.group.members if m.store != described.group.leader_store]
    expect(len(described.followers) == len(described.group.members), f"no progress of members: {described}")
    request = admin_pb2.TransferLeaderRequest(group=got.header.group, to_store=others[0])
    admin.TransferLeader(request, timeout=TIMEOUT)
    wait_for_leader(describe, got.header.group, others[0])

    try:
        admin.DescribeGroup(admin_pb2.DescribeGroupRequest(group=10**15), timeout=TIMEOUT)
        raise SystemExit("interop: a group that does not exist was described")
    except grpc.RpcError as error:
        metadata = dict(error.trailing_metadata())
        expect(error.code() == grpc.StatusCode.INVALID_ARGUMENT, f"{error}")
        expect(metadata.get("polyraft-outcome") == "none", f"{metadata}")


class Reflected:
    """Calls methods that are known only from what the server says about itself."""

    def __init__(self, channel):
        self.channel = channel
        database = ProtoReflectionDescriptorDatabase(channel)
        self.services = set(database.get_services())
        self.pool = descriptor_pool.DescriptorPool(database)

    def call(self, service, method, **fields):
        described = self.pool.FindServiceByName(service).FindMethodByName(method)
        request = message_factory.GetMessageClass(described.input_type)
        response = message_factory.GetMessageClass(described.output_type)
        call = self.channel.unary_unary(
            f"/{service}/{method}",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )
        return call(request(**fields), timeout=TIMEOUT)


def by_reflection(channel, key):
    server = Reflected(channel)
    kv, admin = "polyraft.kv.v1.Kv", "polyraft.admin.v1.Admin"
    for service in (kv, admin, "grpc.health.v1.Health"):
        expect(service in server.services, f"{service} is not reflected: {server.services}")
    health = server.call("grpc.health.v1.Health", "Check")
    expect(health.status == 1, f"not healthy: {health}")

    server.call(kv, "Put", key=key, value=b"from reflection")
    got = server.call(kv, "Get", key=key)
    expect(got.value == b"from reflection", f"got {got}")

    def describe(group):
        return server.call(admin, "DescribeGroup", group=group)

    group = describe(got.header.group).group
    others = [m.store for m in group.members if m.store != group.leader_store]
    server.call(admin, "TransferLeader", group=group.group, to_store=others[0])
    wait_for_leader(describe, group.group, others[0])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--endpoints", required=True, help="HOST:PORT,... of stores; each is called")
    for endpoint in parser.parse_args().endpoints.split(","):
        with grpc.insecure_channel(endpoint) as channel:
            by_stubs(channel, f"interop-{endpoint}".encode())
            by_reflection(channel, f"interop-{endpoint}".encode())
        print(f"interop: {endpoint}: stubs and reflection agree")


if __name__ == "__main__":
    main()
