"""What peers' published formulas say of the same rows; used by the accuracy scripts, never by the tool.

llmfit 1.1.17 and whichllm 0.5.21 multiply bandwidth over weight bytes by a flat efficiency; gpu_poor does so with its own
bits per weight. Their constants are those of `quant_bpw.csv` (PEER ASSUMPTION) and of the generic formula that issue 6
names (27 to 31 % error). What of them is not published there is taken as the generic 0.55 of the bandwidth and marked.
"""

from __future__ import annotations

from sizing.tables import read_rows
from tests.benchmarks.rows import Row

# (share of the bandwidth, whose bits per weight). llmfit's and whichllm's bits are in quant_bpw.csv; the shares are
# UNVERIFIED: llmfit's is that of its fallback path, the others' the plain roofline that they describe.
PEERS = {
    "llmfit (0.55 x bandwidth / weights)": (0.55, "llmfit"),
    "whichllm (0.55 x bandwidth / weights)": (0.55, "whichllm"),
    "gpu_poor (bandwidth / weights at 4.5 bits)": (1.0, "gpu_poor"),
    "plain bandwidth / weights": (1.0, ""),
    "generic 0.7 x bandwidth / weights": (0.7, ""),
}


def _bits(row: Row, peer: str) -> float:
    for known in read_rows("quant_bpw.csv"):
        if f"PEER ASSUMPTION {peer}" in known["kind"] and known["quant"].upper() == row.quantization.name.upper():
            return float(known["bits_per_weight"])
    if peer == "gpu_poor" and row.quantization.quantized:
        return 4.5
    return row.quantization.bits_per_weight


def tok_s(peer: str, row: Row) -> float:
    """Tokens per second of one stream as the peer's formula has it."""
    share, bits_of = PEERS[peer]
    read = row.model.active_params * (_bits(row, bits_of) if bits_of else row.quantization.bits_per_weight) / 8
    return share * row.hardware.bandwidth_gbs * 1e9 / read
