/**
 * What is published of ProSparse's operators: Song et al. 2024 and the cards of its models, PowerInfer on one A100.
 * S2 and S3 in µs; without the operators a step takes as long at every sparsity.
 */
export const SHAPES = [
  {
    name: '7B: d 4096, nFf 11008',
    d: 4096,
    nFf: 11_008,
    published: { s2DenseUs: 90.55, s3DenseUs: 82.92 },
    rows: [
      { setting: 'vanilla ReLU', sparsity: 0.6604, s2Us: 67.85, s2: 1.33, s3Us: 63.28, s3: 1.31 },
      { setting: 'ReluLLaMA', sparsity: 0.6698, s2Us: 67.12, s2: 1.35, s3Us: 63.0, s3: 1.32 },
      { setting: 'ProSparse, no shift', sparsity: 0.8811, s2Us: 46.66, s2: 1.94, s3Us: 55.56, s3: 1.49 },
      { setting: 'ProSparse', sparsity: 0.8932, s2Us: 45.38, s2: 2.0, s3Us: 55.05, s3: 1.51 },
      { setting: 'fixed L1', sparsity: 0.9146, s2Us: 40.99, s2: 2.21, s3Us: 54.19, s3: 1.53 },
    ],
  },
  {
    name: '13B: d 5120, nFf 13824',
    d: 5120,
    nFf: 13_824,
    published: { s2DenseUs: 131.36, s3DenseUs: 113.68 },
    rows: [
      { setting: 'ReluLLaMA', sparsity: 0.7156, s2Us: 69.92, s2: 1.88, s3Us: 75.47, s3: 1.51 },
      { setting: 'ProSparse, no shift', sparsity: 0.8797, s2Us: 55.29, s2: 2.38, s3Us: 67.5, s3: 1.68 },
      { setting: 'ProSparse', sparsity: 0.888, s2Us: 53.78, s2: 2.44, s3Us: 66.73, s3: 1.7 },
    ],
  },
];
