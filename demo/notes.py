# SPDX-License-Identifier: GPL-3.0-or-later
"""The notes in the example workflows, in English and Chinese: the front end shows one file in every language."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Note:
    title: str
    text: str


@dataclass(frozen=True)
class TrainWords:
    """What differs between training a subject and a style.

    Args:
        word: the placeholder, which means nothing yet.
        example: a caption with it, in a note.
    """

    english: str
    chinese: str
    folder: str
    word: str
    example: str


SUBJECT = TrainWords("subject", "主体", "soda_example_subject", "sks", "a sks flower on green hills")
STYLE = TrainWords("style", "风格", "soda_example_style", "in zqx style", "a house on a hill, in zqx style")


def train(words: TrainWords, size: int) -> list[Note]:
    return [
        Note(
            "Start here",
            f"""## Train a {words.english} adapter

It runs as it is, on five example pictures. For your own:

1. Choose your **base model**.
2. Put 3 to 10 pictures in a folder in ComfyUI's `input` folder and choose it in **Load Image-Text** (`R` renews the \
list). Beside each goes a text file of the same name with its caption: \
{"a *placeholder* word that means nothing yet" if words is SUBJECT else "what it shows and *then* the style"}: \
`{words.example}`.
3. Another phrase than `{words.word}`? Change it in the captions, in **Captions without '{words.word}'**, in \
**trigger_phrase** and in the **Prompt**.
4. Press **Run**. The adapter is saved in `models/soda` as soon as training ends, and a picture is made with it.

Cancelling keeps what was learned so far.

**Base captions** are the same captions without the placeholder; the *dco* loss compares with them what the base \
model can do already. Captions must say everything that is **not** the {words.english}, so that only the \
{words.english} sticks to the word.

### Settings

- **Resize**: {size} for SD1.5, 1024 for SDXL and SD3; *Empty Latent Image* takes the same. Smaller is faster.
- **steps**: 1000 for a few pictures. Judge by the previews: the loss jumps whatever you do.
- **rotation_lr, shift_lr**: 4e-4 and 5e-5 are about the authors' values for 1000 steps. Nothing learnt? Three times \
as much, again and again. Broken pictures? A third.
- Everything else is in **SODA Training Settings**, for the *settings* input. Out of memory: turn on \
*gradient_checkpointing* there, or resize to fewer pixels.""",
        ),
        Note(
            "从这里开始",
            f"""## 训练{words.chinese}适配器

直接运行即可，用的是五张示例图片。换成自己的：

1. 选择**底模**。
2. 在 ComfyUI 的 `input` 文件夹里建一个文件夹，放入 3 到 10 张图片，然后在**加载图像和文本数据集**里选中它（按 `R` \
刷新列表）。每张图片旁边放一个同名的文本文件，写上标注：\
{"包含一个模型还不认识的*占位词*" if words is SUBJECT else "先写画的是什么，*再*写风格"}：`{words.example}`。
3. 不想用 `{words.word}`？请同时修改标注、**Captions without '{words.word}'**、**触发词**和 **Prompt**。
4. 点**运行**。训练一结束，适配器就存入 `models/soda`，并用它生成一张图。

取消训练会保留到目前为止学到的内容。

**Base captions** 是去掉占位词的标注；*dco* 损失用它来比较底模本来就会什么。除了{words.chinese}本身，标注要写出画面里的\
一切，这样只有{words.chinese}会跟这个词绑在一起。

### 设置

- **Resize**：SD1.5 用 {size}，SDXL 和 SD3 用 1024；“空Latent图像”填同样的值。越小越快。
- **步数**：几张图用 1000 步。看预览图来判断，损失无论如何都会上下跳。
- **旋转学习率、偏移学习率**：4e-4 和 5e-5 大致是论文作者用 1000 步时的取值。没学到东西？乘以 3，不够再乘。\
画面崩了？降到三分之一。
- 其余设置都在 **SODA 训练设置**里，接到“训练设置”输入。显存不够：在那里开启“梯度检查点”，或缩小图片。""",
        ),
    ]


MERGE = [
    Note(
        "Start here",
        """## My subject in my style

First run *Train my subject* and *Train my style*; their newest adapters are chosen here by themselves. Both must have \
been trained on the **base model** chosen here. Only the *adapter* output of the loaders is used.

- **subject_strength**, **style_strength**: 1 = as trained. Lower the one that drowns the other.
- **method**
  - *delta*: adds both changes to the base weights; works with any two adapters of one base.
  - *geodesic*: adds the rotations' angles; the result is as small as its parents where their factor sizes are equal.
  - *parts*: the subject's rotation with the shift of a style that was trained with *shift only*.
  - *normalised*, *projection*, *tsv*: ways to add without drowning one; see the node's help.

The **report** says how much the two get in each other's way, and ends in strengths to try.

Use both placeholder words in the **prompt**.""",
    ),
    Note(
        "从这里开始",
        """## 我的主体，我的风格

先运行 *Train my subject* 和 *Train my style*，这里会自动选中它们最新训练出的适配器。两个适配器都必须是在这里选的\
**底模**上训练的。加载节点只用到“适配器”这一个输出。

- **主体强度**、**风格强度**：1 = 训练时的样子。哪个压过了另一个，就把哪个调低。
- **融合方法**
  - *delta*：把两者的改动加到底模权重上；同一底模的任意两个适配器都能用。
  - *geodesic*：把旋转的角度相加；因子大小相同时，结果和原来一样小。
  - *parts*：主体的旋转，加上用 *shift only* 训练的风格的偏移。
  - *normalised*、*projection*、*tsv*：相加而不让一个盖过另一个的办法；见节点的帮助。

**报告**说明两者互相干扰的程度，最后给出建议的强度。

**提示词**里要写上两个占位词。""",
    ),
]

LOAD = [
    Note(
        "Start here",
        """## Use an adapter

Choose the **base model** the adapter was trained on, then the **adapter** (the newest of *Train my \
subject* is chosen by itself).

`{trigger}` in the prompt becomes the phrase that is stored in the adapter. For a style write `a house, {trigger}`.

- **strength_model**: 0 = base model, 1 = as trained.
- **mode**
  - *linear*: as with a LoRA; adapters add up.
  - *geodesic*: turns the rotation by that part of its angle; try it for strengths above 1.

An adapter's spectral shift only fits the weights it was trained on, so the loader checks the base model and \
stops at a wrong one (with a rotation only it warns in the log).

The result is an ordinary MODEL: LoRAs, ControlNet and further adapters go behind it.""",
    ),
    Note(
        "从这里开始",
        """## 使用适配器

先选适配器训练时用的**底模**，再选**适配器**（会自动选中 *Train my subject* 最新训练出来的那个）。

提示词里的 `{trigger}` 会换成适配器里保存的触发词。风格可以写成 `a house, {trigger}`。

- **模型强度**：0 = 底模，1 = 训练时的样子。
- **强度模式**
  - *linear*：和 LoRA 一样，多个适配器相加。
  - *geodesic*：按比例转动旋转的角度；强度大于 1 时可以试试。

适配器的谱偏移只适合训练时用的权重，所以加载时会检查底模，不对就停下（只有旋转的适配器则在日志里警告）。

输出就是普通的模型：后面可以接 LoRA、ControlNet 和其他适配器。""",
    ),
]

ONE_CHECKPOINT = [
    Note(
        "Start here",
        """## Base and adapter as one checkpoint

For programs that know nothing of SODA, or to pass on a model.

1. Choose the **base model**, the **adapter** (the newest of *Train my subject* is chosen by itself) and its \
**strength**.
2. Press **Run**. ComfyUI's own *Save Checkpoint* writes the model with the adapter in its weights to \
`output/checkpoints`; after `R` every *Load Checkpoint* lists it.
3. Load it with the same prompt, seed and settings: it gives the **picture** that is made here.

The file has the base's size, and the adapter cannot be taken out again. Smaller, but with losses: *Export SODA as \
LoRA*.""",
    ),
    Note(
        "从这里开始",
        """## 底模和适配器合成一个大模型

给不认识 SODA 的程序用，或者把模型发给别人时用。

1. 选好**底模**、**适配器**（会自动选中 *Train my subject* 最新训练出来的那个）和**强度**。
2. 点**运行**。ComfyUI 自带的“保存检查点”节点会把融入了适配器的模型写到 `output/checkpoints`；按 `R` 刷新后，\
所有“加载检查点”节点里都能选到它。
3. 用同样的提示词、种子和设置加载它，得到的就是这里生成的**图片**。

文件和底模一样大，适配器也不能再拆出来。想要小一些、可以接受损失，就用 *Export SODA as LoRA*。""",
    ),
]

EARLY_AND_LATE = [
    Note(
        "Start here",
        """## Subject early, style late

The first steps lay a picture out, the last ones fill it in. So the **subject** starts at full strength and fades to \
0.2, and the **style** comes up from 0.2.

- Choose your **base model** and an adapter in each loader (the newest of *Train my subject* and *Train my \
style* are chosen by themselves). Only the *HOOKS* outputs of the loaders are used.
- *strength_start*, *strength_end*: what the loader's strength is multiplied by at the first and at the last keyframe; \
*end_percent* says where in the sampling the last one is.
- The **sampler** takes the base model as it is: the prompts carry the adapters.
- A *mask* in **Prompts that carry the adapters** keeps them in a part of the picture.

The weights are patched anew at every keyframe, so this samples more slowly than a merge.""",
    ),
    Note(
        "从这里开始",
        """## 先主体，后风格

前几步决定构图，后几步填充细节。所以**主体**从满强度开始，逐渐降到 0.2；**风格**则从 0.2 逐渐升上来。

- 选好**底模**，并在两个加载节点里各选一个适配器（会自动选中 *Train my subject* 和 *Train my style* 最新\
训练出来的）。加载节点只用到“约束”（HOOKS）这一个输出。
- *strength_start*、*strength_end*：加载节点的强度在第一个和最后一个关键帧处再乘以多少；*end_percent* 是最后一个关键帧\
在采样过程中的位置。
- **采样器**直接用底模：适配器由提示词带着。
- 在 **Prompts that carry the adapters** 上接一个*遮罩*，可以让它们只作用于画面的一部分。

每个关键帧都要重新给权重打补丁，所以比融合后采样慢一些。""",
    ),
]
