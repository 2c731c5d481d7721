"""One colour means one method, in every figure; and the colours of what is no method."""

# Okabe and Ito's colours, grey, olive, brown, violets and a dark blue: apart also for eyes with two kinds of
# cones. A method on another's base has a shade of that one's colour, as far as they stay apart.
METHOD_COLORS = {
    "fp": "#000000",
    "rtn": "#666666",
    "rtn+search": "#3C0000",
    "gptq": "#61423B",
    "smoothquant": "#F0E442",
    "smoothquant+gptq": "#CCE396",
    "vidit-q": "#783018",
    "vidit-q+mixed": "#92674F",
    "quarot": "#009E73",
    "q-dit": "#6A1FD0",
    "svdquant": "#CC79A7",
    "svdquant+small-rank": "#9977FF",
    "svdquant+gptq": "#7A2964",
    "hadamard": "#56B4E9",
    "hadamard+gptq": "#0072B2",
    "hadamard+gptq+search": "#A8A860",
    "hadamard+gptq+lagrangian": "#4242AD",
    "hadamard+gptq+prices": "#69F2C4",
    "hadamard+gptq+widths": "#5008FC",
    "hadamard+gptq+widths-average": "#6C60FC",
    "adatsq+plain": "#FF8593",
    "adatsq+plain+search": "#142B3B",
    "adatsq+smoothquant": "#E8C15E",
    "adatsq+smoothquant+search": "#AD592B",
    "adatsq+svdquant": "#EBC2E4",
    "adatsq+svdquant+search": "#960587",
    "adatsq-weights": "#E69F00",
    "adatsq": "#D55E00",
    "adatsq+ladder": "#480060",
    "adatsq+lagrangian": "#000088",
}

# Curves, groups and models, in the order in which they are drawn; what is beside them, and what is behind.
SERIES = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9")
GREY, PALE = "#666666", "#BBBBBB"


def method_color(method: str) -> str:
    """The colour of a method, whatever else its label says after a space."""
    found = METHOD_COLORS.get(method) or METHOD_COLORS.get(method.split()[0])
    if found is None:
        raise ValueError(f"no colour for method {method!r}; known: {', '.join(METHOD_COLORS)}")
    return found
