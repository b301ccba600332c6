"""Definitions of the numbers in the report."""

DEFINITIONS: tuple[tuple[str, str], ...] = (
    (
        "Top-1, last epoch",
        "Share of the test images whose highest-scoring class is the right one, measured on the "
        "deployed network after the last epoch of training. This is the headline. Where the data "
        "have a validation split, it is that of the epoch with the best validation accuracy, and "
        "the tables say so.",
    ),
    (
        "Mutual k-NN",
        "Of networks that give embeddings: of each test image the 10 nearest others by cosine, by "
        "the student and by the teacher; the share that both have, mean over the images. Two "
        "unrelated embeddings of n images have about 10 / (n - 1). Huh et al., The Platonic "
        "Representation Hypothesis, 2024.",
    ),
    (
        "k-NN top-1, hidden labels",
        "Share of the test images that have the majority class of their 10 nearest training images "
        "by cosine, once after training. The labels judge; no training, epoch or recommendation "
        "depends on them.",
    ),
    (
        "Best on test",
        "The highest top-1 of any epoch. The epoch is chosen by looking at the test set, so this "
        "number is optimistic; it stands here because some papers report it.",
    ),
    (
        "Standard error",
        "Of a top-1 of share p on n test images: sqrt(p (1 - p) / n), binomial. It says how much "
        "the choice of test images matters; it holds neither the spread between trials nor any "
        "change of data, and it is zero at 0 and at 100 %.",
    ),
    (
        "Paired difference",
        "Of two networks on the same n test images: (b - c) / n, where b images are classified "
        "correctly by the first alone and c by the second alone. Of one training each, p is that "
        "of the exact McNemar test (b of b + c flips of a fair coin, two-sided) and the 95 % "
        "interval Tango's score interval (Statistics in Medicine 17, 1998), widened to Clopper and "
        "Pearson's of b among b + c, so that it agrees with the test. Of T trials, paired by "
        "their number, the variance is s_T^2 / T + s_N^2 / n, of the trials' differences and of "
        "the images' mean differences, with Student's t and Satterthwaite's degrees of freedom. By "
        "class p is corrected by Holm's method. Predictions are saved in predictions.npz; without "
        "them the standard error is sqrt(a^2 + b^2) of both networks' errors, as if the test sets "
        "were independent.",
    ),
    (
        "Not distinguishable",
        "A difference with p of 0.05 or more; unpaired, of at most two standard errors. It is not "
        "called an improvement.",
    ),
    (
        "Several trials",
        "Mean ± standard deviation (divisor: trials - 1) over trainings that differ in their seed.",
    ),
    (
        "Deployed network",
        "What is shipped: encoder, projector where the method has one, and classifier. Accuracy, "
        "size, MACs, latency and the ONNX file are all of this network.",
    ),
    ("Parameters", "Trainable numbers of the network: weights and biases, no buffers."),
    (
        "Pruning ratio",
        "100 x (1 - parameters of the deployed network / parameters of the teacher): equation 6 of "
        "the SimKD paper, the projector and a classifier taken from the teacher included. The "
        "plain ratio is that of the student with its own classifier and no projector; the "
        "difference between both, in points, is what the projector costs.",
    ),
    (
        "MACs",
        "Multiply-adds of convolutions and linear layers for one image, one multiply-add counted "
        "as one. Batch norm, activations and pooling count nothing; other products of matrices "
        "and attention are not counted either, and are listed beside the number.",
    ),
    ("FLOPs", "2 x MACs."),
    ("Size", "Bytes of the file with the weights; 1 MB is 10^6 bytes."),
    (
        "Peak activation memory",
        "The most bytes of intermediate tensors alive at once during one eager inference forward "
        "of one batch; parameters are not in it.",
    ),
    (
        "Latency",
        "Wall-clock time of one forward of a whole batch after warm-up, the networks taking turns "
        "in every round; median and 95th percentile (p95) over the rounds. torch and ONNX Runtime "
        "are timed under the same protocol, each in its own stage.",
    ),
    (
        "Largest logit difference",
        "Maximum absolute difference over all compared images and classes between the logits of "
        "two forms of one network.",
    ),
    (
        "Agreement",
        "Share of the images for which two forms of one network name the same class.",
    ),
    (
        "Encoder loaded",
        "Share of the encoder's tensors that came from the distilled student: 100 % for the "
        "distilled initialisation, 0 % from scratch.",
    ),
)
