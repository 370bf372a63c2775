"""What is changed inside DGL before it comes up. Runs on server and trainer ranks.

DGL 1.1.3 is the last release that works beside a current torch, so its code does not move any more.
Each function below changes one thing, and its docstring says what DGL does by itself and why that
will not do. `distsage.launch.dgl.messages` has what is added to DGL rather than changed.
"""

import contextlib
import logging
import os
import stat
from collections.abc import Iterator
from typing import Any

import dgl
import numpy as np
import torch
import torch.utils.dlpack
from dgl.distributed import (
    dist_context,
    dist_graph,
    graph_partition_book,
    kvstore,
    rpc,
    shared_mem_utils,
)

from distsage.data.precision import cast_features
from distsage.launch.dgl.frames import Message
from distsage.launch.dgl.messages import (
    SPARSE_COLUMNS,
    SPARSE_INDPTR,
    SPARSE_VALUES,
    DGLJob,
    from_plain,
    register_questions,
    to_plain,
)
from distsage.launch.dgl.transport import Transport
from distsage.limits import SHARED_MEMORY
from distsage.partitioning.dgl_arrays import read_arrays
from distsage.partitioning.manifest import EDGE_TYPE, NODE_DATA, NODE_TYPE

log = logging.getLogger(__name__)


def install(job: DGLJob) -> str:
    """Make the changes that servers and trainers share, and tell DGL of the job.

    Once per process, before `dgl.distributed.initialize`.

    Returns:
        What `initialize` gets for the path of a list of servers; DGL looks whether it exists.
    """
    _own_shared_memory(job.prefix)
    _know_the_parts(job)
    _share_no_graph()
    _send_plain_data()
    _know_the_servers(job)
    _log_what_is_printed()
    register_questions()

    assignment = job.assignment
    servers = os.devnull
    os.environ.update(
        DGL_DIST_MODE="distributed",
        DGL_ROLE="server" if assignment.role == "server" else "client",
        DGL_IP_CONFIG=servers,
        DGL_CONF_PATH=str(job.parts.parts.dgl_config),
        DGL_NUM_SERVER=str(assignment.pairs_per_host),
        DGL_NUM_CLIENT=str(assignment.num_trainers),
        DGL_NUM_SAMPLER="0",
        DGL_GRAPH_FORMAT="csc",
    )
    if assignment.role == "server":
        os.environ["DGL_SERVER_ID"] = str(assignment.server_id)
    return servers


def _own_shared_memory(prefix: str) -> None:
    """Make and open segments of shared memory that are this job's, this host's and this user's.

    DGL names segments by tensor and graph only: two jobs on one host, or two emulated hosts on one
    machine, would overwrite each other's. And it opens whatever has the name, so that another user
    could make a segment before it does, and write into it.
    """

    def prefixed(name: str) -> str:
        return f"{prefix}{name.lstrip('/')}"

    def open_segment(name: str, is_create: bool, *rest: Any) -> Any:
        with _new_segments(prefixed(name)) if is_create else _checked_segments(prefixed(name)):
            return empty(prefixed(name), is_create, *rest)

    empty = kvstore.empty_shared_mem
    for module in (dist_graph, kvstore, shared_mem_utils):
        module.empty_shared_mem = open_segment


@contextlib.contextmanager
def _new_segments(*names: str) -> Iterator[None]:
    """Segments that nobody has made before, for DGL to open inside and to give their size.

    They are held open meanwhile, so that no other job takes them for ones that were left
    (`distsage.launch.preflight.sweep_leftovers`).

    Raises:
        FileExistsError: somebody has made one of them.
    """
    with contextlib.ExitStack() as held:
        for name in names:
            flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW
            held.callback(os.close, os.open(SHARED_MEMORY / name, flags, 0o600))
        yield


@contextlib.contextmanager
def _checked_segments(*names: str) -> Iterator[None]:
    """Segments that this user alone can have made and written, for DGL to open inside.

    The directory is sticky: nobody else can put another one in the place of a segment.

    Raises:
        PermissionError: one of them is another user's.
    """
    for name in names:
        found = (SHARED_MEMORY / name).lstat()
        others = stat.S_IRWXG | stat.S_IRWXO
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            raise PermissionError(f"{SHARED_MEMORY / name} is another user's; refusing to open it")
        if found.st_mode & others:
            raise PermissionError(f"{SHARED_MEMORY / name} is open to others; refusing to open it")
    yield


def unlink_segments(job: DGLJob) -> None:
    """Take the names from this host's segments; who has them mapped keeps them."""
    for segment in SHARED_MEMORY.glob(f"{job.prefix}*"):
        segment.unlink(missing_ok=True)


def _know_the_parts(job: DGLJob) -> None:
    """Tell DGL which nodes and edges belong to which host, as the manifest has it.

    DGL's servers read it from a configuration that has one part for each host. They pickle it into
    shared memory, and DGL's trainers unpickle what they find there.
    """
    parts = job.parts
    edge_type = tuple(EDGE_TYPE.split(":"))
    book = graph_partition_book.RangePartitionBook(
        job.assignment.host,
        parts.num_hosts,
        {NODE_TYPE: np.array(parts.ranges)},
        {edge_type: np.array([parts.edges(host) for host in range(parts.num_hosts)])},
        {NODE_TYPE: 0},
        {edge_type: 0},
    )
    what = book, parts.manifest.graph_name, [NODE_TYPE], [edge_type]
    dist_graph.load_partition_book = lambda config, host: what
    dist_graph.load_partition = lambda config, host, load_feats: (dgl.graph([]), {}, {}, *what)
    dist_graph.get_shared_mem_partition_book = lambda graph_name: book
    graph_partition_book.RangePartitionBook.shared_memory = lambda book, graph_name: None


def _share_no_graph() -> None:
    """Have servers and trainers do without a graph of DGL's.

    DGL's servers load the edges of a part for DGL's samplers. Ours read the parts' topology.
    """
    dist_graph._copy_graph_to_shared_mem = lambda graph, graph_name, graph_format: graph
    dist_graph._get_graph_from_shared_mem = lambda graph_name: None


def _send_plain_data() -> None:
    """Send what requests and answers say as plain data.

    DGL pickles them, and unpickles what arrives on an open port. Its fast way of pulling rows sends
    from C++, past everything that Python could check.
    """
    rpc.RPCMessage = Message
    rpc.serialize_to_payload = to_plain
    rpc.deserialize_from_payload = from_plain
    rpc.fast_pull = _pull


def _pull(
    name: str,
    ids: torch.Tensor,
    part_of: torch.Tensor,
    service_id: int,
    num_parts: int,
    servers_per_host: int,
    own_part: int,
    client_id: int,
    own_rows: torch.Tensor,
    policy: graph_partition_book.PartitionPolicy,
) -> torch.Tensor:
    """Rows of `ids` (`[n]`) from the parts that have them; the arguments are `rpc.fast_pull`'s."""
    rows = own_rows.new_empty(len(ids), *own_rows.shape[1:])
    parts = [part for part in part_of.unique().tolist() if part != own_part]
    asked = [(part, kvstore.PullRequest(name, ids[part_of == part])) for part in parts]
    rows[part_of == own_part] = own_rows[policy.to_local(ids[part_of == own_part])]
    for part, answer in zip(parts, rpc.remote_call(asked), strict=True):
        rows[part_of == part] = answer.data_tensor
    return rows


def _know_the_servers(job: DGLJob) -> None:
    """Tell DGL which servers there are.

    DGL reads it from a file, where the servers of a host have neighbouring ports, and looks there
    for the host's own address; where it finds none it takes part 0 without a word.
    """
    pairs = job.assignment.pairs_per_host
    rpc.read_ip_config = lambda filename, num_servers: {
        server: [server // pairs, ip, port, pairs] for server, (ip, port) in enumerate(job.servers)
    }


def join_rpc(job: DGLJob, rank: int) -> None:
    """Tell DGL's RPC who this process is, and of the services that both sides know.

    DGL gives trainers numbers of its own, by the order of their addresses. Here a trainer has its
    rank in torch.distributed. DGL's handler of signals is not installed: it calls exit() in a
    process whose threads live on, which ends in pages of traces.

    Args:
        job: of this rank.
        rank: its number among the servers or among the trainers.
    """
    rpc.register_service(rpc.CLIENT_REGISTER, rpc.ClientRegisterRequest, rpc.ClientRegisterResponse)
    rpc.register_service(rpc.SHUT_DOWN_SERVER, rpc.ShutDownRequest, None)
    rpc.register_service(rpc.CLIENT_BARRIER, rpc.ClientBarrierRequest, rpc.ClientBarrierResponse)
    assignment = job.assignment
    rpc.set_rank(rank)
    rpc.set_machine_id(assignment.host)
    rpc.set_num_machines(assignment.num_hosts)
    rpc.set_num_server(len(job.servers))
    rpc.set_num_server_per_machine(assignment.pairs_per_host)
    rpc.set_num_client(assignment.num_trainers)
    rpc.set_group_id(0)


def carry_messages(transport: Transport) -> None:
    """Have DGL's RPC send and receive through `transport`.

    DGL's own sockets take whoever connects first for a trainer, and read in C++ what arrives.
    """

    def receive(timeout: int = 0) -> Message:
        assert timeout == 0, "the rank's watcher bounds waits"
        _, message = transport.receive()
        return message

    rpc.send_rpc_message = lambda message, peer: transport.send(peer, message)
    rpc.recv_rpc_message = receive
    rpc.get_client = lambda client_id, group_id: client_id
    rpc.finalize_sender = transport.close
    rpc.finalize_receiver = lambda: None


def _log_what_is_printed() -> None:
    """Send DGL's messages on standard output, which say how far it is, to the log."""

    def log_words(*words: Any, **_: Any) -> None:
        log.info(" ".join(map(str, words)))

    for module in (dist_context, dist_graph, rpc):
        module.print = log_words


def load_rows(job: DGLJob) -> None:
    """Have this server keep and send the rows of all parts of its host.

    DGL serves one part, features in the type of the file, and dense ones only. Here features are
    kept in the type of the job (those of two bytes as int16: DGL has no shared memory of bfloat16);
    sparse ones are not among what DGL loads (`share_sparse_features`).
    """
    parts = job.parts
    is_sparse = parts.manifest.features.is_sparse

    def load(config: str, host: int, load_nodes: bool, load_edges: bool) -> Any:
        together: dict[str, torch.Tensor] = {}
        low, high = parts.nodes(host)
        for part in parts.held(host) if load_nodes else ():
            begin, end = (gid - low for gid in parts.manifest.parts[part].nodes)
            for name, array in read_arrays(parts.parts.path / f"part{part}" / NODE_DATA).items():
                rows = torch.from_numpy(array)
                if name == f"{NODE_TYPE}/features" and not is_sparse:
                    rows = _shareable(cast_features(rows, job.feature_dtype, job.feature_scale))
                if len(rows) == high - low:  # there is no other part
                    together[name] = rows
                    continue
                if name not in together:
                    together[name] = rows.new_empty(high - low, *rows.shape[1:])
                together[name][begin:end] = rows
        return together, {}

    dist_graph.load_partition_feats = load


def share_sparse_features(job: DGLJob, store: kvstore.KVServer) -> None:
    """Keep a host's sparse features in DGL's KVStore, where the host's ranks find them.

    By itself it takes tensors only that have a row for each node or edge. It gives whatever it has
    to the backup servers and trainers of the host.

    Raises:
        UserError: a feature does not fit the type that it is to be kept in, or the parts' files do
            not hold what the manifest says.
    """
    indptr, columns, values = job.parts.sparse_features(job.assignment.host)
    arrays = {SPARSE_INDPTR: indptr, SPARSE_COLUMNS: columns}
    if values is not None:
        scale = None if job.feature_scale is None else job.feature_scale[columns]
        cast = cast_features(torch.from_numpy(np.array(values)), job.feature_dtype, scale)
        arrays[SPARSE_VALUES] = _shareable(cast).numpy()
    for name, array in arrays.items():
        # There are no segments of no bytes.
        size = max(len(array), 1)
        segment = kvstore.empty_shared_mem(f"{name}-kvdata-", True, (size,), array.dtype.name)
        tensor = torch.utils.dlpack.from_dlpack(segment.to_dlpack())
        tensor.numpy()[: len(array)] = array
        store.data_store[name] = tensor
        store.part_policy[name] = store.find_policy(f"node~{NODE_TYPE}")
        store.pull_handlers[name] = kvstore.default_pull_handler
        store.push_handlers[name] = kvstore.default_push_handler
        store.orig_data.add(name)


def _shareable(rows: torch.Tensor) -> torch.Tensor:
    return rows.view(torch.int16) if rows.itemsize == 2 else rows
