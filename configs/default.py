"""Every config field with its default; the other configs start from here and change a few.

Fields with `placeholder(type)` are unset by default; the comment gives the value that is then used.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0  # initialization; also data.seed and data.augmentation_seed, if unset
    config.init_from = placeholder(str)  # workdir of a run to start from; fresh weights if unset
    # With init_from: "keep" or "reset" the head. If unset, it is kept for the same classes,
    # and reset for another number of classes; other classes of the same number are an error.
    config.init_head = placeholder(str)

    config.model = model = ConfigDict()
    model.name = "repvgg_a0"  # one of repvgg_jax.list_models()
    # Train-time block: repvgg, plain (one convolution with BatchNorm), acb, dbb, orepa, mobileone,
    # qarepvgg, dirac, doconv, expandnet, ... (docs/concepts/blocks.md); the model's own if unset.
    model.block = placeholder(str)
    model.num_classes = 1000
    model.depths = placeholder(tuple)  # blocks in each stage, the stem included; the model's own
    model.widths = placeholder(tuple)  # channels of each stage; the model's own
    model.strides = placeholder(tuple)  # stride of each stage's first block; 2 everywhere
    model.groups = placeholder(int)  # groups of every second layer (ResNeXt: of all 3x3)
    model.grouped_layers = placeholder(tuple)  # layers to group instead; the stem is layer 0
    model.branches = placeholder(tuple)  # some of ("kxk", "1x1", "identity"); all
    model.copies = placeholder(int)  # block mobileone: number of kxk branches; 4
    # Initialization of block repvgg or plain: lecun, he, timm, or default (PyTorch's). For
    # deep_plain: delta_orthogonal (if unset), he or default.
    model.initializer = placeholder(str)
    model.depth = placeholder(int)  # deep_plain: number of layers; 1000
    # deep_plain: channels; 32. DenseNet, ShuffleNet: outputs of the stem; 64, 24.
    model.width = placeholder(int)
    model.activation = placeholder(str)  # deep_plain: tanh (if unset), relu, leaky_relu
    # Nets of other families: side and stride of the first convolution, and stride of the max
    # pooling after it; (3, 1, 1) for images of 32x32 (docs/concepts/nets.md).
    model.stem = placeholder(tuple)
    model.hidden = placeholder(tuple)  # vgg: outputs of the hidden dense layers; (4096, 4096)
    # Probability of dropout: VGG, after each hidden layer (0.5); other nets, before the head.
    model.dropout = placeholder(float)
    # Probability of skipping the last unit: mobilenetv2 (0 if unset), efficientnet (0.2).
    model.drop_path = placeholder(float)
    model.group_width = placeholder(int)  # ResNeXt, RegNet: channels of a group
    # MobileNets, EfficientNets: factor on all widths; that of the name.
    model.multiplier = placeholder(float)
    model.auxiliary = placeholder(bool)  # googlenet: auxiliary heads in training; False
    model.expansion = placeholder(int)  # mobilenetv2, efficientnet: of a unit's inputs; 6
    model.growth = placeholder(int)  # DenseNets: outputs of each layer; 32 (densenet161: 48)
    # Number of consecutive images over which BatchNorm computes its statistics in training; the
    # whole batch on all devices if unset. The paper uses 32, the images of one GPU.
    model.bn_group_size = placeholder(int)
    # Activations that blocks store for their gradient, while others are recomputed to save memory:
    # "nothing" or "convolutions" (their outputs); everything if unset.
    model.remat = placeholder(str)
    # How training computes the 1x1 and identity branches of RepVGG: "moments" (both from the mean
    # and covariance of the input), "batch" (each separately); the faster of the two if unset.
    model.branch_statistics = placeholder(str)
    # Implementation of convolutions: "xla", "winograd" or "onednn" (on a CPU); if unset, onednn
    # where it can be used. These two fields do not change results, except for rounding.
    model.conv_algorithm = placeholder(str)
    model.frozen = placeholder(tuple)  # regular expressions of blocks to freeze: ("stage[0-2]_.*",)
    model.dtype = "float32"  # type of activations; parameters and statistics are always float32

    config.data = data = ConfigDict()
    data.source = "tfds"  # tfds (prepared as array_record), folder (class folders), digits
    data.name = "imagenet2012"  # TFDS data set: `name`, `name/config` or `name:version`
    data.data_dir = placeholder(str)  # folder of the data; ~/tensorflow_datasets
    # Class folders without val/: share of each class that is held out for evaluation. If unset, and
    # there is no train/ either, training and evaluation use the same images.
    data.holdout = placeholder(float)
    data.manual_dir = placeholder(str)  # --mode=prepare: folder of archives downloaded by hand
    data.image_size = 224  # side of the square image that the net sees, in pixels
    data.augmentation = "resized_crop"  # resized_crop and flip, pad_crop (small images), none
    data.resize = 256  # evaluation: length of the shorter side before the center crop
    data.padding = 4  # pad_crop: zero padding on each side before the random crop
    data.flip = True  # training: mirror half of the images
    data.eval_image_size = placeholder(int)  # side of the image in evaluation; image_size
    # Training, after crop and flip: "none", "autoaugment" (torchvision's ImageNet policy, with gray
    # fill), "autoaugment_cifar10", "randaugment" (as in timm), "raug15" (RepVGGplus).
    data.policy = "none"
    # randaugment: these three values are timm's "rand-m9-n2-mstd0.5-inc1". Each operation drawn is
    # applied with probability 1/2, at a magnitude clipped to [0, 10].
    data.policy_operations = 2
    data.policy_magnitude = 9.0  # from 0 to 10; timm also clips the 15 of some recipes
    data.policy_std = 0.5  # standard deviation of the magnitude
    data.erasing = 0.0  # training: probability of erasing a rectangle with noise
    data.mean = (0.485, 0.456, 0.406)  # of [0, 1] RGB; normalization happens on the device
    data.std = (0.229, 0.224, 0.225)
    data.skip_corrupt = False  # True: count and skip images that cannot be decoded
    data.workers = 4  # decoding threads in each process
    data.seed = placeholder(int)  # order of the images; config.seed
    data.augmentation_seed = placeholder(int)  # crops, policies and mixing; config.seed

    config.mesh = mesh = ConfigDict()  # axes of the device mesh; -1 takes the remaining devices
    mesh.data = -1  # batches are split over both axes
    mesh.fsdp = 1  # parameters and optimizer state are split over this axis
    mesh.min_size = 2**16  # elements below which an array is replicated rather than split

    config.train = train = ConfigDict()
    train.epochs = 120.0
    train.steps = placeholder(int)  # overrides epochs
    train.batch_size = 256  # over all devices
    train.eval_batch_size = 256  # over all devices
    # Steps that one call of the compiled program takes, for data that fit into device memory; if
    # unset, as many as take a quarter second. This does not change results.
    train.steps_per_call = placeholder(int)
    train.accumulate = 1  # microbatches that a batch is split into, to save memory
    train.mixup = 0.0  # alpha of the Beta distribution; 0 disables it
    train.cutmix = 0.0  # alpha of the Beta distribution; 0 disables it
    train.deterministic = False  # bit-for-bit reproducible on GPUs too, but slower
    train.deadline = placeholder(float)  # seconds from the start within which to save and stop
    train.eval_every = placeholder(int)  # steps; the fewest whole epochs that have 50 or more
    train.checkpoint_every = 1000  # steps; evaluations also write checkpoints
    train.keep = 2  # latest checkpoints to keep, in addition to that with the best top-1
    train.log_every = 50  # steps

    config.optim = optim = ConfigDict()
    optim.learning_rate = 0.1  # for a batch of 256; scales with train.batch_size / 256
    optim.warmup_epochs = 0.0  # linear from 0; then half a cosine to 0, updated every step
    optim.momentum = 0.9
    optim.nesterov = False
    optim.weight_decay = 1e-4
    # Weight decay of kernels and of the scale of the identity's BatchNorm, as in the released code:
    # it exempts names with "bn" or "bias", and its name of that scale has neither. The first match
    # applies.
    optim.decay_rules = (
        (r".*kernel", 1.0),
        (r".*/bn_identity/scale", 1.0),
        (r".*/branch_scales", 1.0),
    )
    # The released code's L2 for RepVGG blocks, instead of the decay of kernels: the 1x1 kernel and
    # the center tap decay together, as the single tap that they fuse to.
    optim.custom_l2 = placeholder(bool)
    optim.bias_rate_factor = 1.0  # factor on the learning rate of biases
    optim.rate_rules = ()  # more (regex, factor) pairs, matched first: ((r"head/.*", 10.0),)
    optim.ema_decay = 0.0  # decay of the EMA, which is evaluated and fused; 0 disables it
    # Limits the decay to (1 + n) / (10 + n) after n steps, so that the initial weights, which the
    # average starts from, are soon forgotten.
    optim.ema_warmup = True
    optim.clip_norm = placeholder(float)  # limit on the gradient's norm over all parameters; none
    optim.max_norm = placeholder(float)  # limit on every filter's norm after each step; none
    optim.repoptimizer_from = placeholder(str)  # workdir of a csla run, for RepOptimizer's scales
    optim.label_smoothing = 0.0
    optim.auxiliary_weight = 0.1  # of each auxiliary head's loss (repvgg_plus_l2pse, googlenet)

    config.bench = bench = ConfigDict()  # --mode=bench
    bench.batch_sizes = (1, 8, 32, 128, 256)
    bench.seconds = 10.0  # once a run takes longer, larger batches are skipped

    config.fuse = fuse = ConfigDict()
    fuse.verify_images = 256  # evaluation images on which the two forms are compared
    fuse.tolerance = 1e-3  # largest accepted relative error of a block or the logits
    return config.lock()  # a misspelled field in a config is an error
