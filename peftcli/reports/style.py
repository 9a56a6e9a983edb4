"""The page's style: one sheet for light, dark, phone and paper. No fonts, pictures or rules from elsewhere.

Text and marks keep a contrast of at least 4.5 to 1 on their ground (WCAG 2.2 AA) in both schemes; a test computes it.
"""

from __future__ import annotations

LIGHT = {
    "paper": "#faf9f6",
    "card": "#ffffff",
    "ink": "#1b1e24",
    "soft": "#59606c",
    "line": "#e3e0d9",
    "faint": "#f1efe9",
    "tuned": "#1f56c4",
    "tuned-ground": "#e4ecfc",
    "base": "#a4500a",
    "rate": "#6a4bb4",
    "gradient": "#0b6f66",
    "good": "#14693b",
    "good-ground": "#e0f2e6",
    "warn": "#855000",
    "warn-ground": "#fcf0d6",
    "bad": "#ad2018",
    "bad-ground": "#fce6e3",
}

DARK = {
    "paper": "#121418",
    "card": "#1a1d23",
    "ink": "#e9eaec",
    "soft": "#a4abb7",
    "line": "#30353d",
    "faint": "#20242b",
    "tuned": "#8fb4ff",
    "tuned-ground": "#1f3157",
    "base": "#f2ab66",
    "rate": "#bda8f7",
    "gradient": "#5fcfc2",
    "good": "#74d49a",
    "good-ground": "#17382a",
    "warn": "#f0bf5f",
    "warn-ground": "#3d3013",
    "bad": "#ff9d92",
    "bad-ground": "#48211e",
}

# Runs of a comparison: told apart by hue, lightness and dash, for eyes that see colour differently.
RUN_COLOURS = (
    ("#1f56c4", "#8fb4ff", "none"),
    ("#a4500a", "#f2ab66", "7 3"),
    ("#0b6f66", "#5fcfc2", "2 3"),
    ("#8a2f8f", "#e6a0ea", "9 3 2 3"),
    ("#5c6370", "#b4bac4", "none"),
    ("#ad2018", "#ff9d92", "4 4"),
    ("#4d6b0c", "#b5d66a", "12 4"),
    ("#0a5c86", "#7cc8f0", "1 3"),
)


def _variables(colours: dict[str, str], which: int) -> str:
    runs = {f"run-{index}": run[which] for index, run in enumerate(RUN_COLOURS)}
    return "".join(f"--{name}:{value};" for name, value in {**colours, **runs}.items())


_RULES = """
*,*::before,*::after{box-sizing:border-box}
html{background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI","Helvetica Neue",
"Liberation Sans",Arial,sans-serif;-webkit-text-size-adjust:100%;text-size-adjust:100%;scroll-behavior:smooth}
@media (prefers-reduced-motion:reduce){html{scroll-behavior:auto}}
body{margin:0;overflow-wrap:anywhere}
.page{max-width:76rem;margin:0 auto;padding:0 clamp(1rem,4vw,3rem) 4rem}
h1,h2,h3,h4,p,ul,dl,dd,figure{margin:0;padding:0}
h1{font-size:clamp(1.35rem,3vw,1.7rem);line-height:1.2;font-weight:650;letter-spacing:-.012em}
h2{font-size:1.2rem;line-height:1.3;font-weight:650;letter-spacing:-.008em}
h3{font-size:1rem;font-weight:650;line-height:1.4}
h4{font-size:.8125rem;font-weight:600;color:var(--soft);line-height:1.4}
pre,code,.quoted,.tokens{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace}
pre,code{font-size:.8125rem;line-height:1.6}
a{color:var(--tuned);text-underline-offset:.2em;text-decoration-thickness:1px}
:focus-visible{outline:2px solid var(--tuned);outline-offset:2px;border-radius:3px}
.skip{position:absolute;left:-99rem;top:.5rem;padding:.5rem 1rem;background:var(--card);z-index:1}
.skip:focus{left:.5rem}
.unseen{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);white-space:nowrap}
.note{color:var(--soft);font-size:.8125rem}

.masthead{padding:clamp(1.5rem,4vw,3rem) 0 1.25rem}
.eyebrow{color:var(--soft);font-size:.8125rem;margin-bottom:.35rem}
.identity{display:flex;flex-wrap:wrap;gap:.25rem 1.75rem;margin-top:.7rem;font-size:.875rem}
.identity div{display:flex;gap:.45rem;min-width:0}
.identity dt{color:var(--soft)}

.verdict{background:var(--card);border:1px solid var(--line);border-radius:14px;overflow:hidden}
.words{padding:clamp(1.25rem,3.5vw,2.25rem) clamp(1.1rem,3.5vw,2.25rem) clamp(1rem,2.5vw,1.6rem)}
.headline{font-size:clamp(2.1rem,6vw,3.4rem);line-height:1.06;font-weight:700;letter-spacing:-.03em;
margin-bottom:.55em;text-wrap:balance}
.learned .headline{color:var(--good)}
.mixed .headline,.unclear .headline,.unmeasured .headline,.interrupted .headline{color:var(--warn)}
.worse .headline,.failed .headline{color:var(--bad)}
.sentence{font-size:clamp(1rem,1.6vw,1.125rem);max-width:46em;text-wrap:pretty}
.sentence+.sentence{margin-top:.3em}
.basis{color:var(--soft);font-size:.9375rem;margin-top:.6em}
.why{margin-top:1.25rem;padding:1rem 1.1rem;background:var(--bad-ground);border-radius:10px}
.interrupted .why{background:var(--warn-ground)}
.why pre{margin:.4rem 0 .6rem;padding:0;border:0;background:none;white-space:pre-wrap}
.why .note{color:var(--ink)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(10.5rem,1fr));gap:1px;overflow:hidden;
border-block:1px solid var(--line)}
.tile{box-shadow:0 0 0 1px var(--line);padding:1rem 1.1rem 1.1rem clamp(1.1rem,2vw,1.5rem)}
.tile:first-child{padding-left:clamp(1.1rem,3.5vw,2.25rem)}
.tile dt{font-size:.8125rem;color:var(--soft)}
.figure{font-size:1.75rem;line-height:1.25;font-weight:640;letter-spacing:-.02em;font-variant-numeric:tabular-nums;
white-space:nowrap}
.tile.better .figure{color:var(--good)}
.tile.worse .figure{color:var(--bad)}
.below{font-size:.8125rem;color:var(--soft);font-variant-numeric:tabular-nums}
.trust-block{padding:clamp(1.1rem,2.5vw,1.6rem) clamp(1.1rem,3.5vw,2.25rem)}
.trust{margin-top:.15rem}
.checks{list-style:none;margin-top:.85rem;display:grid;gap:.6rem;max-width:56em}
.checks li{display:flex;gap:.7rem;align-items:baseline;font-size:.9375rem}
.checks .note{color:inherit}
.checks strong{font-weight:620}
.mark{flex:none;width:1.35rem;height:1.35rem;border-radius:50%;display:inline-grid;place-items:center;
font-size:.75rem;font-weight:700;line-height:1;background:var(--faint);color:var(--soft);position:relative;top:-.05rem}
.warn>.mark{background:var(--warn-ground);color:var(--warn)}
.bad>.mark{background:var(--bad-ground);color:var(--bad)}
.clear>.mark{background:var(--good-ground);color:var(--good)}

.contents{margin:1.1rem 0 0;font-size:.875rem}
.contents ul{list-style:none;display:flex;flex-wrap:wrap;gap:.2rem 1.25rem}
.contents a{display:inline-block;padding:.3rem 0;color:var(--soft);text-decoration:none}
.contents a:hover{color:var(--ink);text-decoration:underline}
main>section:not(.verdict){display:grid;grid-template-columns:minmax(0,11.5rem) minmax(0,1fr);gap:0 2.5rem;
padding:2.75rem 0;border-bottom:1px solid var(--line);scroll-margin-top:1rem}
main>section:last-child{border-bottom:0}
.section-head p{color:var(--soft);font-size:.875rem;line-height:1.5;margin-top:.35rem}
.section-body{display:grid;grid-template-columns:minmax(0,1fr);gap:1.75rem;align-content:start}

.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,21rem),1fr));gap:2rem 2.25rem}
.chart{min-width:0}
figcaption{display:flex;flex-wrap:wrap;gap:.1rem 1.1rem;align-items:baseline;margin-bottom:.75rem}
.chart-title{font-weight:620;font-size:.9375rem}
.legend{display:flex;flex-wrap:wrap;gap:.1rem .95rem;font-size:.8125rem;color:var(--soft)}
.legend>span{display:inline-flex;align-items:center;gap:.4rem}
.key{flex:none;overflow:visible}
.plot{padding:.4rem .2rem 1.75rem 2.9rem}
.plot.gutter{padding-left:6.6rem;padding-bottom:0}
.plot.flush{padding:0}
.chart .note{margin-top:.15rem}
.plot+.note{padding-left:2.9rem}
.plot.flush+.note,.plot.gutter+.note{padding-left:0;margin-top:.5rem}
.picture{display:block;overflow:visible}
.grid{stroke:var(--line);stroke-width:1}
.axis{stroke:var(--soft);stroke-opacity:.6;stroke-width:1}
.tick{fill:var(--soft);font-size:12px;font-variant-numeric:tabular-nums}
.curve{fill:none;stroke:var(--colour);stroke-width:2;vector-effect:non-scaling-stroke;stroke-linejoin:round;
stroke-dasharray:var(--dash,none)}
.curve.raw{stroke-width:1;stroke-opacity:.38}
.dot{fill:var(--colour);stroke:var(--card);stroke-width:1.5}
section:not(.verdict) .dot{stroke:var(--paper)}
.dot.hollow,section .dot.hollow{fill:var(--paper);stroke:var(--colour);stroke-width:2}
.train,.tuned{--colour:var(--tuned)}
.evaluation,.base{--colour:var(--base)}
.rate{--colour:var(--rate)}
.gradient{--colour:var(--gradient)}
.quiet{--colour:var(--soft)}
.bar{fill:var(--colour)}
.bar.quiet{fill-opacity:.55}
.bar-track{fill:var(--faint)}
.bar-name{fill:var(--ink);font-size:13px}
.bar-text{fill:var(--soft);font-size:13px;font-variant-numeric:tabular-nums}
.cell{fill:var(--tuned)}
.whisker{stroke:var(--colour);stroke-width:2}

.whiskers{display:grid;gap:1.1rem}
.whisker-row{display:grid;grid-template-columns:minmax(0,10rem) minmax(0,1fr);gap:.25rem 1.5rem;align-items:center}
.whisker-name strong{display:block;font-weight:620;font-size:.9375rem}
.lanes{padding:0 .5rem}
.table{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.875rem;font-variant-numeric:tabular-nums}
caption{text-align:left;font-weight:620;font-size:.9375rem;padding-bottom:.5rem}
th,td{text-align:left;padding:.5rem 1.1rem .5rem 0;vertical-align:top;min-width:5.2rem;border-top:1px solid var(--line)}
th:last-child,td:last-child{padding-right:0}
thead th{color:var(--soft);font-weight:500;font-size:.8125rem;border-top:0;padding-top:0;white-space:nowrap}
tbody th{font-weight:500;min-width:7.2rem;position:sticky;left:0;background:var(--paper)}
.number{text-align:right;white-space:nowrap}
.whole{white-space:nowrap}
.interval{display:block;color:var(--soft);font-size:.8125rem}
.relation{font-weight:620}
.relation.better{color:var(--good)}
.relation.worse{color:var(--bad)}
.relation.unclear,.relation.unmeasured{color:var(--soft)}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,19rem),1fr));gap:1.5rem 2.25rem}
.facts div{display:flex;justify-content:space-between;gap:1rem;padding:.45rem 0;border-top:1px solid var(--line);
font-size:.875rem}
.facts div:first-child{border-top:0}
.facts dt{color:var(--soft)}
.facts dd{text-align:right;font-variant-numeric:tabular-nums}

.sample{display:grid;gap:.9rem;padding-bottom:1.75rem;border-bottom:1px solid var(--line)}
.sample:last-of-type{border-bottom:0;padding-bottom:0}
.sample h3 .note{font-weight:400;margin-left:.7rem}
.prompt h4,.answer h4{margin-bottom:.3rem;display:flex;gap:.5rem;align-items:center;min-height:1.5rem}
.answers{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,14rem),1fr));gap:1rem 1.25rem}
.answer{min-width:0;background:var(--card);border:1px solid var(--line);border-radius:10px;padding:.6rem .8rem .75rem}
.answer.tuned h4{color:var(--tuned)}
.answer.base h4{color:var(--base)}
.answer.reference{background:var(--faint);border-color:transparent}
.quoted{white-space:pre-wrap;font-size:.8125rem;line-height:1.6;unicode-bidi:plaintext}
ins,del{border-radius:3px;padding:.06em .12em}
ins{background:var(--warn-ground);color:var(--warn);text-decoration:underline;text-decoration-thickness:2px;
text-underline-offset:.18em}
del{background:var(--bad-ground);color:var(--bad);text-decoration:line-through}
.badge{font-size:.75rem;font-weight:600;line-height:1;padding:.22rem .45rem;border-radius:6px;background:var(--faint);
color:var(--soft);white-space:nowrap}
.badge.good{background:var(--good-ground);color:var(--good)}
.badge.off,.badge.warn{background:var(--warn-ground);color:var(--warn)}
.badge.fail{background:var(--bad-ground);color:var(--bad)}
.token-rows{display:grid;gap:1rem}
.token-row{display:grid;gap:.25rem}
.tokens{white-space:pre-wrap;font-size:.8125rem;line-height:1.75;unicode-bidi:plaintext;max-height:22rem;overflow:auto}
.token{border-radius:3px}
.token.context{color:var(--soft)}
.token.trained{background:var(--tuned-ground);color:var(--ink);box-shadow:inset 0 -2px var(--tuned)}
.token.special{color:var(--soft);outline:1px dashed var(--soft);outline-offset:-1px;padding:0 .2em}
.marks .token{padding:.05rem .3rem}
details{border-top:1px solid var(--line);padding-top:.65rem}
summary{cursor:pointer;font-size:.875rem;font-weight:560;color:var(--soft);width:fit-content;padding:.2rem 0}
summary:hover{color:var(--ink)}
details[open]>summary{margin-bottom:.75rem}
.trust-block details{border-top:0;padding-top:.6rem}
.warnings{padding-left:1.1rem;display:grid;gap:.4rem;font-size:.9375rem}
pre{margin:.5rem 0 0;padding:1rem 1.1rem;background:var(--card);border:1px solid var(--line);border-radius:10px;
white-space:pre-wrap;overflow-wrap:anywhere;max-height:40rem;overflow:auto}
.key .raw{stroke-opacity:.8}
.run-name{min-width:9rem;display:inline-flex;gap:.55rem;align-items:center}
.verdict-word{font-weight:600;white-space:nowrap}
.verdict-word.learned{color:var(--good)}
.verdict-word.worse,.verdict-word.failed,.verdict-word.leaked{color:var(--bad)}
.verdict-word.mixed,.verdict-word.unclear,.verdict-word.unmeasured,.verdict-word.interrupted{color:var(--warn)}
.masthead .sentence{margin-top:.6rem}
.caveat{color:var(--warn);margin-top:.4rem}
footer{color:var(--soft);font-size:.8125rem;padding-top:1.25rem}

@media (max-width:56rem){
main>section:not(.verdict){grid-template-columns:minmax(0,1fr);gap:1.1rem;padding:2.1rem 0}
}
@media (max-width:34rem){
.whisker-row{grid-template-columns:minmax(0,1fr)}
.whisker-name strong{display:inline;margin-right:.5rem}
.tiles{grid-template-columns:1fr 1fr}
.tile:last-child:nth-child(odd){grid-column:span 2}
.tile,.tile:first-child{padding:.85rem 1rem .9rem 1.1rem}
.figure{font-size:1.45rem}
th,td{padding-right:.75rem}
}
@media print{
html{font-size:11px}
.page{max-width:none;padding:0}
.contents,.skip{display:none}
.verdict,.chart,.sample,.token-row,.whisker-row,tr{break-inside:avoid}
h2,h3,caption{break-after:avoid}
pre,.tokens,.table{max-height:none;overflow:visible}
details::details-content{content-visibility:visible;block-size:auto}
summary{list-style:none}
:root{--paper:#fff}
.section-body,.charts,.whiskers,.token-rows{display:block}
.section-body>*,.chart,.whisker-row,.sample,.token-row{margin-bottom:1.4rem}
.charts{columns:2;column-gap:2rem}
main>section:not(.verdict){display:block;padding:1.4rem 0}
.section-head{margin-bottom:1rem}
.tick{font-size:10px}
.plot{padding-left:40px}
.plot.gutter{padding-left:100px}
.plot.flush{padding-left:0}
.bar-name,.bar-text{font-size:11px}
details:not([open]){display:none}
.trust-block details:not([open]){display:block}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}
@page{margin:14mm}
}
"""


def style_sheet() -> str:
    """The whole sheet. Paper is always light."""
    light, dark = _variables(LIGHT, 0), _variables(DARK, 1)
    runs = "".join(
        f".run-{index}{{--colour:var(--run-{index});--dash:{run[2]}}}" for index, run in enumerate(RUN_COLOURS)
    )
    schemes = (
        f":root{{color-scheme:light dark;{light}}}@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}"
    )
    return schemes + runs + _RULES
