"""ONNX Runtime's GroupQueryAttention on the CPU as a peer: one node, one decode step.

The node appends the step's key and value to a cache that is bound both as past and as present, so
nothing is copied. Its CPU kernel has float32 and float16.
"""

from __future__ import annotations

import itertools

import onnxruntime
import torch
from onnx import TensorProto, helper
from torch import Tensor

from formulations import Call
from workload import Layer, Problem, Shape

VERSION = f"onnxruntime {onnxruntime.__version__}"
SETTINGS = (
    "com.microsoft GroupQueryAttention on the CPUExecutionProvider, defaults but "
    "intra_op_num_threads; past and present are one buffer through IO binding; no rotary "
    "embedding; the call appends the last key and value"
)
ELEMENTS = {torch.float32: TensorProto.FLOAT, torch.float16: TensorProto.FLOAT16}
DTYPES = tuple(ELEMENTS)


def make_calls(
    problem: Problem, layers: list[Layer], sharpness: float, threads: int
) -> dict[str, Call]:
    """A call that walks through the layers and returns [1, HQ, D]."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    case = problem.case
    model = _model(case.shape, case.num_keys, ELEMENTS[case.dtype])
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    q = problem.query(sharpness)
    bindings = itertools.cycle([_Binding(session, q, layer) for layer in layers])

    def call() -> Tensor:
        binding = next(bindings)
        session.run_with_iobinding(binding.binding)
        return binding.out

    return {"ONNX Runtime GQA": call}


class _Binding:
    """One layer's tensors as the node's inputs and outputs, kept alive."""

    def __init__(self, session: onnxruntime.InferenceSession, q: Tensor, layer: Layer) -> None:
        k, v, _ = layer
        num_keys = k.shape[2]
        self.out = torch.empty_like(q)
        self.inputs = {
            "query": q.view(1, 1, -1),
            "key": k[:, :, -1].reshape(1, 1, -1),
            "value": v[:, :, -1].reshape(1, 1, -1),
            "past_key": k,
            "past_value": v,
            "seqlens_k": torch.tensor([num_keys - 1], dtype=torch.int32),
            "total_sequence_length": torch.tensor([num_keys], dtype=torch.int32),
        }
        outputs = {"output": self.out.view(1, 1, -1), "present_key": k, "present_value": v}
        self.binding = session.io_binding()
        for tensors, bind in (
            (self.inputs, self.binding.bind_input),
            (outputs, self.binding.bind_output),
        ):
            for name, tensor in tensors.items():
                element = tensor.new_empty(0).numpy().dtype.type
                bind(name, "cpu", 0, element, tuple(tensor.shape), tensor.data_ptr())


def _model(shape: Shape, num_keys: int, element: int) -> bytes:
    """A graph of the one node, serialised."""

    def token(name: str, num_heads: int) -> object:
        return helper.make_tensor_value_info(name, element, [1, 1, num_heads * shape.head_dim])

    def cache(name: str) -> object:
        size = [1, shape.num_kv_heads, num_keys, shape.head_dim]
        return helper.make_tensor_value_info(name, element, size)

    inputs = [
        token("query", shape.num_q_heads),
        token("key", shape.num_kv_heads),
        token("value", shape.num_kv_heads),
        cache("past_key"),
        cache("past_value"),
        helper.make_tensor_value_info("seqlens_k", TensorProto.INT32, [1]),
        helper.make_tensor_value_info("total_sequence_length", TensorProto.INT32, [1]),
    ]
    outputs = [token("output", shape.num_q_heads), cache("present_key"), cache("present_value")]
    node = helper.make_node(
        "GroupQueryAttention",
        [value.name for value in inputs],
        [value.name for value in outputs],
        domain="com.microsoft",
        num_heads=shape.num_q_heads,
        kv_num_heads=shape.num_kv_heads,
    )
    graph = helper.make_graph([node], "decode_step", inputs, outputs)
    domains = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=domains, ir_version=10).SerializeToString()
